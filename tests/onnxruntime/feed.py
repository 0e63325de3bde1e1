"""What onnxruntime computes with an exported file, without an adapter, fed with one, and without again.

    python feed.py MODEL.onnx INPUTS.npz ADAPTER.npz OUT.npz

ADAPTER.npz holds arrays named after optional graph inputs. OUT.npz gets base.NAME, fed.NAME and again.NAME for every output,
computed with basic optimization, and default.NAME: fed, with default optimization. The file has to pass onnx.checker.
"""

import sys

import numpy as np
import onnx
from compare import session


def main() -> None:
    model, inputs, adapter, out = sys.argv[1:]
    onnx.checker.check_model(model, full_check=True)
    inputs, adapter = dict(np.load(inputs)), dict(np.load(adapter))
    basic, default = session(model, basic=True), session(model, basic=False)
    names = [o.name for o in basic.get_outputs()]
    runs = {"base": (basic, inputs), "fed": (basic, inputs | adapter), "again": (basic, inputs)}
    runs["default"] = (default, inputs | adapter)
    found = {}
    for run, (runner, feeds) in runs.items():
        found |= {f"{run}.{name}": value for name, value in zip(names, runner.run(names, feeds))}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
