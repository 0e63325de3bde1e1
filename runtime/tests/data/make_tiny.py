"""Writes the small base and the samples that the runtime's tests and examples use: `tiny/` and `tiny.npz`.

    python make_tiny.py CONVERTER        (the binary; needs onnx and numpy)

A random network 3 -> 8 -> 2; the label says whether the first two inputs have the same sign.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

HERE = Path(__file__).parent
INPUTS, HIDDEN, CLASSES, SAMPLES = 3, 8, 2, 60


def model(rng: np.random.Generator):
    def tensor(name, value):
        return numpy_helper.from_array(np.asarray(value, np.float32), name)

    weights = [
        tensor("fc1.weight", rng.normal(size=(INPUTS, HIDDEN))),
        tensor("fc1.bias", 0.1 * rng.normal(size=HIDDEN)),
        tensor("head.weight", rng.normal(size=(HIDDEN, CLASSES))),
        tensor("head.bias", np.zeros(CLASSES)),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["hidden"], name="/fc1/Gemm"),
        helper.make_node("Relu", ["hidden"], ["active"], name="/Relu"),
        helper.make_node("Gemm", ["active", "head.weight", "head.bias"], ["logits"], name="/head/Gemm"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "tiny", [x], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def main() -> None:
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tiny.onnx"
        save(model(rng), source)
        subprocess.run([sys.argv[1], "export", source, "--out", HERE / "tiny", "--quant", "none"], check=True)
    x = rng.normal(size=(SAMPLES, INPUTS)).astype(np.float32)
    np.savez(HERE / "tiny.npz", x=x, labels=(x[:, 0] * x[:, 1] > 0).astype(np.int64))


if __name__ == "__main__":
    main()
