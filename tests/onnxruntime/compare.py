"""Exported files against onnxruntime, and onnxruntime against `personalize predict`.

    python compare.py [--scratch DIR] [--quant NAME,...] [CASE ...]

A case is the name of a fixture, of a golden run, or `minilm/encoder` / `minilm/classifier`; without one, all of them.
The binaries are taken from the environment: CONVERTER and PERSONALIZE, else target/debug/.

For each case and quantization: the file passes onnx.checker; onnxruntime with basic optimization runs it unmodified
without an adapter, fed at ranks 1, 4 and 16, and without again (the same bits as before); with default optimization
and session.qdq_matmulnbits_accuracy_level=1 it gives the same numbers; `personalize predict` agrees with it at each of
these, reading the adapters as PEFT folders. Without quantization the outputs are also those of PyTorch; golden runs add
their own adapter. Needs numpy, onnx, onnxruntime. Exit code 1 when anything differs.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
TOLERANCE = 1e-4  # of max(1, largest value)
RANKS = (1, 4, 16)
CALIBRATED = "int4-calibrated"
INT4 = ["--quant", "int4", "--int4-block", "16"]
NO_INT4 = ("autoencoder", "decoder", "gelus", "global_cnn", "golden/small_mobile", "halves/cnn", "mobile", "unet")  # without a linear before the head that fills blocks
EXPORTS = {  # what is exported, by name; small models have few linears whose inputs fill a larger block
    "int8": ["--quant", "int8"],
    "none": ["--quant", "none"],
    "f16": ["--quant", "f16"],
    "int4": INT4,
    "int4-qdq": [*INT4, "--qdq"],
    "int4-hqq": [*INT4, "--int4-method", "hqq"],
    "int4-hqq-qdq": [*INT4, "--int4-method", "hqq", "--qdq"],
    CALIBRATED: INT4,  # on the case's inputs
}


QUANTIZED = "quantized/"


class Failure(Exception):
    """A check that did not hold."""


@dataclass
class Case:
    """A source model, inputs for it, and what PyTorch computes."""

    name: str
    source: Path
    inputs: Path
    outputs: dict  # quantization -> {output: array}; what the base computes
    adapter: Path | None = None
    adapted: dict = field(default_factory=dict)  # quantization -> {output: array}; with `adapter`
    options: list = field(default_factory=list)  # of `converter export`
    rules: list = field(default_factory=list)  # the same, with int4


def cases() -> list:
    """Every case that is committed."""
    found = []
    for source in sorted((TESTS / "fixtures").glob("*.onnx")):
        stem = source.with_suffix("")
        # A cache that is taken out leaves what the same weights compute without one.
        cached = "_cache_" in source.stem
        stem = stem.with_name("llama_ts17") if cached else stem
        inputs, outputs = (Path(f"{stem}.{kind}.npz") for kind in ("inputs", "outputs"))
        case = Case(source.stem, source, inputs, {"none": dict(np.load(outputs))})
        case.options = ["--no-kv-cache"] if cached else []
        found.append(case)
    golden = TESTS / "golden"
    for run in json.loads((golden / "manifest.json").read_text())["runs"]:
        names = {"f32": ("none",), "int8": ("int8",), "int4": [n for n in EXPORTS if n.startswith("int4")]}
        if "export" in run:  # the method whose levels the weights are
            hqq = "hqq" in run["export"]
            names["int4"] = [n for n in names["int4"] if ("hqq" in n) == hqq]
        expected = {q: np.load(golden / path) for b, path in run["expected"].items() for q in names[b]}
        outputs, adapted = (
            {q: {run["output"]: e[key]} for q, e in expected.items()} for key in ("base_output", "initial_output")
        )
        source, data, adapter = (golden / run[key] for key in ("source", "data", "adapter"))
        rules = [word for word in run.get("export", []) if word == "--quant-rule" or "=" in word]
        found.append(Case(f"golden/{run['name']}", source, data, outputs, adapter, adapted, rules=rules))
    # Models that are quantized already, unquantized beyond that; onnxruntime rounds activations where there is a step.
    quantized = TESTS / "fixtures" / "quantized"
    for name, about in json.loads((quantized / "quantized.json").read_text()).items():
        inputs = TESTS / "fixtures" / f"{about['fixture']}.inputs.npz"
        outputs = {} if about["step"] else {"none": dict(np.load(quantized / f"{name}.outputs.npz"))}
        found.append(Case(f"{QUANTIZED}{name}", quantized / f"{name}.onnx", inputs, outputs))
    # Models in half precision become models of floats; onnxruntime rounds what the source computes in halves.
    halves = TESTS / "fixtures" / "halves"
    for name, about in json.loads((halves / "halves.json").read_text()).items():
        inputs = TESTS / "fixtures" / f"{about['fixture']}.inputs.npz"
        outputs = {} if about["computes_in_halves"] else {"none": dict(np.load(halves / f"{name}.outputs.npz"))}
        found.append(Case(f"halves/{name}", halves / f"{name}.onnx", inputs, outputs))
    for name in ("encoder", "classifier"):
        for sample in ("short", "padded"):
            stem = TESTS / "fixtures" / "minilm" / f"{name}.{sample}"
            outputs = {"none": dict(np.load(f"{stem}.outputs.npz"))}
            source = ROOT / "target" / "minilm" / f"{name}.onnx"
            found.append(Case(f"minilm/{name}/{sample}", source, Path(f"{stem}.inputs.npz"), outputs))
    return found


def binary(name: str) -> str:
    """The path of a binary of this project."""
    path = Path(os.environ.get(name.upper(), ROOT / "target" / "debug" / name))
    if not path.is_file():
        sys.exit(f"error: no {path}; run `cargo build -p inlay-converter -p inlay-runtime` or set {name.upper()}")
    return str(path)


def command(*args) -> None:
    """Runs a command; its output is the failure's message."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{' '.join(map(str, args))}\n  exit {done.returncode}: {(done.stderr or done.stdout).strip()}")


def session(path: Path, basic: bool) -> ort.InferenceSession:
    """onnxruntime as users are told to run it: basic optimization, or default with exact int8 linears."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if basic:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    else:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass
class Adapter:
    """A random LoRA adapter on every point, as a PEFT folder and as what onnxruntime is fed."""

    folder: Path
    feeds: dict


def random_adapter(model: onnx.ModelProto, rank: int, folder: Path) -> Adapter:
    """Writes the PEFT folder; where a BatchNorm or calibration was folded, the feeds alone have its factors in A and B."""
    rng = np.random.default_rng(rank)
    points = {p["path"]: p for p in json.loads(metadata(model)["inlay.points"])}
    initializers = {i.name: i for i in model.graph.initializer}
    alpha, rslora = 6.0, rank == max(RANKS)
    scaling = np.float32(alpha / (rank**0.5 if rslora else rank))
    tensors, feeds = {}, {}
    for path, point in points.items():
        kernel = point.get("kernel") or []
        fan_in = point["d_in"] * int(np.prod(kernel))
        a = rng.normal(0, fan_in**-0.5, (rank, point["d_in"], *kernel)).astype(np.float32)
        b = rng.normal(0, 0.2 / scaling, (point["d_out"], rank, *[1] * len(kernel))).astype(np.float32)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
        fed = b * scaling
        if point.get("row_scale"):
            factor = onnx.numpy_helper.to_array(initializers[point["row_scale"]])
            fed = fed * factor.reshape(-1, *[1] * (b.ndim - 1))
        if point.get("input_scale"):
            a = a * onnx.numpy_helper.to_array(initializers[point["input_scale"]])
        linear = point["op"] == "linear"
        feeds[f"{path}.lora_A"] = np.ascontiguousarray(a.T) if linear else a
        feeds[f"{path}.lora_B"] = np.ascontiguousarray(fed.T) if linear else fed
    folder.mkdir()
    config = dict(peft_type="LORA", r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=sorted(points))
    config |= dict(bias="none", fan_in_fan_out=False, use_dora=False, inference_mode=True, lora_dropout=0.0)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_safetensors(folder / "adapter_model.safetensors", tensors)
    return Adapter(folder, feeds)


def save_safetensors(path: Path, tensors: dict) -> None:
    """Writes f32 tensors in the safetensors format."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, value in tensors.items():
        header[name] = dict(dtype="F32", shape=list(value.shape), data_offsets=[offset, offset + value.nbytes])
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in tensors.values()))


def metadata(model: onnx.ModelProto) -> dict:
    """metadata_props as a dictionary."""
    return {p.key: p.value for p in model.metadata_props}


class Comparison:
    """The checks of one case; remembers the worst difference."""

    def __init__(self, case: Case, quant: str, scratch: Path):
        self.case, self.quant, self.scratch = case, quant, scratch
        self.worst = 0.0
        self.data = scratch / "data.npz"
        self.feeds = {k: v for k, v in np.load(case.inputs).items() if k != "labels"}
        np.savez(self.data, **self.feeds)

    def run(self) -> str:
        """All checks; a line that sums them up."""
        base = self.scratch / "base"
        options = ["--out", base, *EXPORTS[self.quant], *self.case.options]
        options += self.case.rules if self.quant.startswith("int4") else []
        options += ["--calibrate", self.data] if self.quant == CALIBRATED else []
        command(binary("converter"), "export", self.case.source, *options)
        path = base / "model.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        if not json.loads(metadata(model)["inlay.points"]):
            raise Failure("no insertion points")
        basic, default = session(path, basic=True), session(path, basic=False)
        plain = self.compute(basic)
        self.compare("default optimization", self.compute(default), plain)
        self.compare("predict", self.predict(base), plain)
        for rank in RANKS:
            adapter = random_adapter(model, rank, self.scratch / f"rank{rank}")
            adapted = self.compute(basic, adapter.feeds)
            if all(np.array_equal(adapted[k], plain[k]) for k in plain):
                raise Failure(f"an adapter of rank {rank} changes nothing in onnxruntime")
            self.compare(f"default optimization, rank {rank}", self.compute(default, adapter.feeds), adapted)
            self.compare(f"predict, rank {rank}", self.predict(base, adapter.folder), adapted)
        again = self.compute(basic)
        if any(not np.array_equal(again[k], plain[k]) for k in plain):
            raise Failure("without an adapter after one was fed: not the same bits as before")
        if self.quant in self.case.outputs:
            self.compare("PyTorch", plain, self.case.outputs[self.quant])
        if self.quant in self.case.adapted:
            expected = self.case.adapted[self.quant]
            self.compare("PyTorch + PEFT", self.predict(base, self.case.adapter), expected)
        size = sum(f.stat().st_size for f in base.iterdir())
        points = len(json.loads(metadata(model)["inlay.points"]))
        return f"worst {self.worst:.1e}, {size / 1024:.0f} KiB, {points} points"

    def compute(self, runner: ort.InferenceSession, adapter: dict | None = None) -> dict:
        """What onnxruntime computes."""
        names = [o.name for o in runner.get_outputs()]
        return dict(zip(names, runner.run(names, self.feeds | (adapter or {}))))

    def predict(self, base: Path, adapter: Path | None = None) -> dict:
        """What `personalize predict` computes."""
        out = self.scratch / "out.npz"
        out.unlink(missing_ok=True)
        extra = ("--adapter", adapter) if adapter else ()
        command(binary("personalize"), "predict", "--base", base, "--data", self.data, *extra, "--out", out)
        return dict(np.load(out))

    def compare(self, what: str, computed: dict, expected: dict) -> None:
        """Fails when an output is missing, shaped otherwise, not finite, or differs by more than the tolerance."""
        if set(computed) != set(expected):
            raise Failure(f"{what}: outputs {sorted(computed)}, expected {sorted(expected)}")
        for name, value in expected.items():
            if computed[name].shape != value.shape:
                raise Failure(f"{what}: {name} is {computed[name].shape}, expected {value.shape}")
            error = float(np.abs(computed[name] - value).max()) / max(1.0, float(np.abs(value).max()))
            if not error <= TOLERANCE:  # NaN too
                raise Failure(f"{what}: {name} differs by {error:.2e}, more than {TOLERANCE}")
            self.worst = max(self.worst, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help="how names start, or =NAME for one")
    parser.add_argument("--scratch", type=Path, help="keep the exported files here")
    parser.add_argument("--quant", default="int8,none,int4,int4-hqq-qdq,f16", help=", ".join(EXPORTS))
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_args()
    named = lambda name: any(f"={name}" == n or name.startswith(n) for n in args.names)  # noqa: E731
    chosen = [c for c in cases() if not args.names or named(c.name)]
    if args.list or not chosen:
        print("\n".join(c.name for c in cases()))
        sys.exit(0 if args.list else f"error: no case {args.names}")
    failed = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        for case in chosen:
            for quant in args.quant.split(","):
                if quant.startswith("int4") and case.name.startswith(NO_INT4):
                    continue
                if quant != "none" and case.name.startswith(QUANTIZED):
                    continue
                scratch = (args.scratch or Path(temporary)) / case.name.replace("/", "_") / quant
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                total += 1
                try:
                    if not case.source.is_file():
                        raise Failure(f"no {case.source}; run `./dev setup`")
                    print(f"ok   {case.name:28} {quant:12} {Comparison(case, quant, scratch).run()}", flush=True)
                except Exception as e:  # whatever it is, the other cases run on
                    failed += 1
                    print(f"FAIL {case.name:28} {quant:12} {type(e).__name__}: {e}", flush=True)
                if not args.scratch:
                    shutil.rmtree(scratch)
    print(f"{total - failed} of {total} passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
