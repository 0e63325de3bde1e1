"""Writes the backend node tests of the installed onnx for some operators, as models and arrays.

    python make_cases.py OUT OP [OP ...]

  OUT/TEST/fed.onnx      the test's model
  OUT/TEST/known.onnx    the same, with every input but the first one of floats as an initializer
  OUT/TEST/{fed,known}.npz   arrays named after the inputs that each has
  OUT/TEST/outputs.npz   arrays named after the graph's outputs
  OUT/tests.txt          a line a test: its name and the operator that it is a test of
  OUT/types.txt          tests that are left out: they have element types other than f32, i64, i32 and bool
  OUT/operators.txt      every operator of ai.onnx that the installed onnx knows, but for deprecated ones

The tests are stamped with the version in which their operator last changed: below 13 and above 23, which the converter
does not read, that only added element types, or is a failure that shows.
"""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

TYPES = {np.dtype(t) for t in ("float32", "int64", "int32", "bool")}
OPSETS = (13, 23)


def known(model: onnx.ModelProto, arrays: dict) -> onnx.ModelProto:
    """The model with all inputs but the first one of floats as initializers."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = list(model.graph.input)
    fed = next((i for i in inputs if arrays[i.name].dtype == np.float32), None)
    for i in inputs:
        if i is not fed:
            model.graph.initializer.append(numpy_helper.from_array(arrays[i.name], i.name))
            model.graph.input.remove(i)
    return model


def write(out: Path, case) -> bool:
    """Writes a test, or returns False if it has other element types than ours."""
    model = case.model
    (inputs, outputs) = case.data_sets[0]
    names = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    values = []
    for listed, arrays in zip(names, (inputs, outputs)):
        if not all(isinstance(a, (np.ndarray, np.generic)) for a in arrays):
            return False
        values.append({n: np.ascontiguousarray(a).reshape(np.shape(a)) for n, a in zip(listed, arrays)})
    if any(a.dtype not in TYPES for arrays in values for a in arrays.values()):
        return False
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = min(max(imported.version, OPSETS[0]), OPSETS[1])
    folder = out / case.name
    folder.mkdir()
    onnx.save(model, folder / "fed.onnx")
    onnx.save(known(model, values[0]), folder / "known.onnx")
    for name in ("fed", "known"):
        left = [i.name for i in onnx.load(folder / f"{name}.onnx").graph.input]
        np.savez(folder / f"{name}.npz", **{n: values[0][n] for n in left})
    np.savez(folder / "outputs.npz", **values[1])
    return True


def main() -> None:
    warnings.simplefilter("ignore")
    out, operators = Path(sys.argv[1]), set(sys.argv[2:])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tests, other_types = [], []
    for case in collect_testcases(None):
        nodes = case.model.graph.node if case.model else []
        # A test of an operator has one node; its twin has the operator's body in the place of it.
        if len(nodes) != 1 or nodes[0].domain not in ("", "ai.onnx") or nodes[0].op_type not in operators:
            continue
        (tests if write(out, case) else other_types).append(f"{case.name} {nodes[0].op_type}\n")
    (out / "tests.txt").write_text("".join(sorted(tests)))
    (out / "types.txt").write_text("".join(sorted(other_types)))
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated]
    (out / "operators.txt").write_text("".join(sorted({f"{s.name}\n" for s in schemas})))


if __name__ == "__main__":
    main()
