"""Adapters on their way to other programs and back: PEFT, onnxruntime, GGUF, and merged into the base.

    python interop.py [--scratch DIR] [RUN ...]

A run is one of tests/golden: an adapter that PEFT saved, and what PyTorch + PEFT computed with it (all runs, without
one). For each, on an f32 and on an int8 base:

- `import-peft` makes a record with which `personalize predict` gives PyTorch's outputs; `export-peft` gives back the
  tensors that PEFT saved, bit for bit;
- onnxruntime, with the `.onnx_adapter` of `export-ort` active through `LoraAdapter`, gives the outputs of `predict`, and
  without it again those of the base;
- `merge` writes a plain model that onnx.checker accepts, without optional inputs, whose outputs are those of `predict`
  with the adapter: in onnxruntime and in `predict` itself;
- `export-gguf`, where the points are linears of an architecture: PyPI's `gguf` reads back what PEFT saved, under
  llama.cpp's names.

Needs numpy, onnx, onnxruntime, gguf. Exit code 1 when anything differs.
"""

import argparse
import json
import struct
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime as ort
from compare import Failure, binary, command, session

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
EXACT = 1e-5  # of max(1, largest value): f32 on both sides
PYTORCH = {"none": EXACT, "int8": 1e-4}  # PyTorch held int8 weights as floats
REQUANTIZED = 0.05
ARCHITECTURES = {  # of llama.cpp: what its modules' paths hold and begin with, the converter's options, heads of queries and keys
    "bert": dict(
        modules=".layer.", prefix="base_model.model.bert.", options=(), heads={}, names=gguf.MODEL_ARCH.BERT
    ),
    "llama": dict(
        modules=".layers.",
        prefix="base_model.model.",
        options=("--heads", "4", "--kv-heads", "2"),
        heads={"q_proj": 4, "k_proj": 2},
        names=gguf.MODEL_ARCH.LLAMA,
    ),
}


def tensors(path: Path) -> dict:
    """The f32 tensors of a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, t in header.items():
        start, end = (8 + size + o for o in t["data_offsets"])
        found[name] = np.frombuffer(raw[start:end], dtype="<f4").reshape(t["shape"])
    return found


def same(what: str, found: dict, expected: dict, tolerance: float) -> None:
    """Fails when an output differs by more than the tolerance."""
    for name, value in expected.items():
        error = float(np.abs(found[name] - value).max()) / max(1.0, float(np.abs(value).max()))
        if not error <= tolerance:  # NaN too
            raise Failure(f"{what}: {name} differs by {error:.2e}, more than {tolerance}")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head as llama.cpp stores them: the halves that rotate together side by side."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


class Run:
    """One adapter on one base."""

    def __init__(self, run: dict, quant: str, scratch: Path):
        self.run, self.quant, self.scratch = run, quant, scratch
        self.folder = GOLDEN / run["adapter"]
        self.base = scratch / "base"
        self.data = scratch / "data.npz"
        self.feeds = {k: v for k, v in np.load(GOLDEN / run["data"]).items() if k != "labels"}
        np.savez(self.data, **self.feeds)

    def check(self) -> str:
        """All checks; a line that sums them up."""
        command(binary("converter"), "export", GOLDEN / self.run["source"], "--out", self.base, "--quant", self.quant)
        record = self.convert("import-peft", self.folder, "record")
        adapted = self.predict(self.base, record)
        expected = np.load(GOLDEN / self.run["expected"]["f32" if self.quant == "none" else "int8"])
        same("PyTorch", adapted, {self.run["output"]: expected["initial_output"]}, PYTORCH[self.quant])

        back, saved = tensors(self.convert("export-peft", record, "peft") / "adapter_model.safetensors"), self.saved()
        exact = "bn" not in self.run["name"]  # there, a factor was multiplied in and divided out
        if set(back) != set(saved) or not all(
            np.array_equal(back[k], saved[k]) if exact else np.allclose(back[k], saved[k], rtol=1e-6) for k in saved
        ):
            raise Failure("export-peft does not give back what PEFT saved")

        self.check_onnxruntime(record, adapted)
        merged = self.check_merged(record, adapted)
        return f"{self.check_gguf(record)}, {merged}"

    def check_onnxruntime(self, record: Path, adapted: dict) -> None:
        runner = session(self.base / "model.onnx", basic=True)
        names = [o.name for o in runner.get_outputs()]
        plain = runner.run(names, self.feeds)
        options, adapter = ort.RunOptions(), ort.LoraAdapter()
        adapter.Load(str(self.convert("export-ort", record, "adapter.onnx_adapter")))
        options.add_active_adapter(adapter)
        same("LoraAdapter", dict(zip(names, runner.run(names, self.feeds, options))), adapted, 1e-4)
        if not all(np.array_equal(a, b) for a, b in zip(runner.run(names, self.feeds), plain)):
            raise Failure("without the adapter: not the same bits as before")

    def check_merged(self, record: Path, adapted: dict) -> str:
        errors = []
        for keep in ([], ["--keep-float"]):
            out = self.convert("merge", record, "merged" + "".join(keep), *keep)
            path = out / "model.onnx"
            onnx.checker.check_model(str(path), full_check=True)
            model = onnx.load(path)
            if {i.name for i in model.graph.input} != set(self.feeds):
                raise Failure(f"merged inputs are {[i.name for i in model.graph.input]}")
            tolerance = EXACT * 2 if keep or self.quant == "none" else REQUANTIZED
            runner = session(path, basic=True)
            names = [o.name for o in runner.get_outputs()]
            computed = dict(zip(names, runner.run(names, self.feeds)))
            same(f"merged {keep} in onnxruntime", computed, adapted, max(tolerance, 1e-4 if self.quant == "int8" else 0))
            ours = self.predict(out)
            same(f"merged {keep}", ours, adapted, tolerance)
            errors.append(max(float(np.abs(ours[n] - v).max()) for n, v in adapted.items()))
        return "merged off by {:.1e}, kept as float {:.1e}".format(*errors)

    def check_gguf(self, record: Path) -> str:
        found = [name for name, arch in ARCHITECTURES.items() if all(arch["modules"] in path for path in self.run["paths"])]
        if not found:
            try:
                self.convert("export-gguf", record, "no.gguf", "--arch", "bert")
            except Failure as refused:
                if "has no such module" in str(refused) or "linears only" in str(refused):
                    return "no GGUF"
                raise
            raise Failure("export-gguf took points that are no modules of BERT")
        name, arch = found[0], ARCHITECTURES[found[0]]
        path = self.convert("export-gguf", record, "adapter.gguf", "--arch", name, *arch["options"])
        reader = gguf.GGUFReader(path)
        config = json.loads((self.folder / "adapter_config.json").read_text())
        fields = {field: value.contents() for field, value in reader.fields.items()}
        wanted = {"general.architecture": name, "general.type": "adapter", "adapter.type": "lora"}
        wanted |= {"adapter.lora.alpha": float(config["lora_alpha"])}
        if any(fields.get(k) != v for k, v in wanted.items()):
            raise Failure(f"GGUF metadata {fields}, expected {wanted}")
        names = gguf.get_tensor_name_map(arch["names"], 8)
        found = {t.name: t.data for t in reader.tensors}
        for key, value in self.saved().items():
            module, tensor = key.removeprefix(arch["prefix"]).removesuffix(".weight").rsplit(".", 1)
            heads = arch["heads"].get(module.rsplit(".", 1)[-1])
            if heads and tensor == "lora_B":
                value = interleaved(value, heads)
            name = f"{names.get_name(module)}.weight.{tensor.lower()}"
            if not np.allclose(found.pop(name), value, rtol=1e-6):
                raise Failure(f"GGUF tensor {name} is not what PEFT saved")
        if found:
            raise Failure(f"GGUF holds more: {sorted(found)}")
        return f"GGUF of {len(reader.tensors)} tensors"

    def saved(self) -> dict:
        """What PEFT saved."""
        return tensors(self.folder / "adapter_model.safetensors")

    def convert(self, name: str, adapter: Path, out: str, *arguments: str) -> Path:
        """Runs a command of the converter; the path of what it wrote."""
        path = self.scratch / out
        command(binary("converter"), name, adapter, "--base", self.base, "--out", path, *arguments)
        return path

    def predict(self, base: Path, adapter: Path | None = None) -> dict:
        """What `personalize predict` computes."""
        out = self.scratch / "out.npz"
        extra = ("--adapter", adapter) if adapter else ()
        command(binary("personalize"), "predict", "--base", base, "--data", self.data, *extra, "--out", out)
        return dict(np.load(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RUN")
    parser.add_argument("--scratch", type=Path, help="keep the files here")
    args = parser.parse_args()
    runs = json.loads((GOLDEN / "manifest.json").read_text())["runs"]
    chosen = [run for run in runs if not args.names or run["name"] in args.names]
    if len(chosen) < max(1, len(args.names)):
        sys.exit(f"error: runs are {[run['name'] for run in runs]}")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for run in chosen:
            for quant in ("none", "int8"):
                scratch = (args.scratch or Path(temporary)) / run["name"] / quant
                scratch.mkdir(parents=True)
                try:
                    print(f"ok   {run['name']:20} {quant:4} {Run(run, quant, scratch).check()}", flush=True)
                except Exception as e:  # whatever it is, the other runs go on
                    failed += 1
                    print(f"FAIL {run['name']:20} {quant:4} {type(e).__name__}: {e}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
