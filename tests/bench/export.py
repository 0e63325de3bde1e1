"""Time and memory of `converter export`.

    python tests/bench/export.py [--converter FILE] [--out docs/benchmarks/export.md] [--mib 1024,2253] [MODEL.onnx ...]

Makes float models of the sizes asked for (a table, pairs of linears, a head; random weights in external data), and exports
them and the models named to int8, each in a process of its own. Needs numpy and onnx, Linux, and twice the model's size on
the disk of target/bench.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import StringStringEntryProto, TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
WIDTH, HIDDEN, ROWS = 2048, 8192, 16384


class Weights:
    """External data, written one tensor at a time."""

    def __init__(self, path: Path):
        self.path, self.file, self.random, self.headers = path, path.open("wb"), np.random.default_rng(1), []

    def add(self, name: str, *dims: int) -> str:
        offset = self.file.tell()
        values = self.random.standard_normal(dims, dtype=np.float32)
        values *= np.float32(dims[0] ** -0.5)
        self.file.write(values.data)
        entries = dict(location=self.path.name, offset=str(offset), length=str(values.nbytes))
        self.headers.append(
            TensorProto(
                name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL,
                external_data=[StringStringEntryProto(key=k, value=v) for k, v in entries.items()],
            )
        )
        return name


def make(folder: Path, mib: int) -> Path:
    """A model whose weights take about `mib` MiB."""
    pair, ends = 2 * WIDTH * HIDDEN * 4 // MIB, 2 * WIDTH * ROWS * 4 // MIB
    weights = Weights(folder / "model.onnx.data")
    nodes = [helper.make_node("Gather", [weights.add("embedding.weight", ROWS, WIDTH), "ids"], ["h0"], "embedding")]
    inline = [helper.make_tensor("gain", TensorProto.FLOAT, [WIDTH], np.ones(WIDTH, np.float32))]
    count = max(1, round((mib - ends) / pair))
    for i in range(count):
        up = weights.add(f"layers.{i}.up.weight", WIDTH, HIDDEN)
        down = weights.add(f"layers.{i}.down.weight", HIDDEN, WIDTH)
        nodes += [
            helper.make_node("LayerNormalization", [f"h{i}", "gain"], [f"n{i}"], f"layers.{i}.norm"),
            helper.make_node("MatMul", [f"n{i}", up], [f"u{i}"], f"layers.{i}.up"),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"], f"layers.{i}.relu"),
            helper.make_node("MatMul", [f"r{i}", down], [f"d{i}"], f"layers.{i}.down"),
            helper.make_node("Add", [f"h{i}", f"d{i}"], [f"h{i + 1}"], f"layers.{i}.add"),
        ]
    nodes.append(helper.make_node("MatMul", [f"h{count}", weights.add("head.weight", WIDTH, ROWS)], ["logits"], "head"))
    weights.file.close()
    graph = helper.make_graph(
        nodes, "generated",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", ROWS])],
        inline + weights.headers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def private_bytes(pid: int) -> int:
    """Memory of a process that is no mapped file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def export(converter: Path, model: Path, folder: Path) -> dict:
    """What an export of `model` took."""
    command = [converter, "export", model, "--out", folder / "base", "--quant", "int8", "--json"]
    start, private = time.monotonic(), 0
    with (folder / "errors.txt").open("wb") as errors, (folder / "report.json").open("wb") as report:
        process = subprocess.Popen(command, stdout=report, stderr=errors)
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            private = max(private, private_bytes(process.pid))
            time.sleep(0.005)
    if status:
        sys.exit(f"error: the export of {model} failed:\n{(folder / 'errors.txt').read_text()[-3000:]}")
    report = json.loads((folder / "report.json").read_text())
    exported = sum(f.stat().st_size for f in (folder / "base").iterdir())
    return dict(
        source=report["source_bytes"], exported=exported, wall=time.monotonic() - start,
        cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss << 10, private=private,
    )


def row(name: str, r: dict) -> str:
    mib = lambda n: f"{n / MIB:,.0f}"
    seconds = f"{r['wall']:.1f} | {r['cpu']:.1f}"
    return f"| {name} | {mib(r['source'])} | {mib(r['exported'])} | {seconds} | {mib(r['peak'])} | {mib(r['private'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--converter", type=Path, default=ROOT / "target/release/converter")
    parser.add_argument("--mib", default="1024", help="sizes of models to make (MiB, separated by commas)")
    parser.add_argument("--out", type=Path, help="a Markdown file whose table is replaced")
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL.onnx")
    args = parser.parse_args()
    rows = []
    scratch = ROOT / "target/bench"
    scratch.mkdir(parents=True, exist_ok=True)

    def measure(name: str, model) -> None:
        folder = Path(tempfile.mkdtemp(prefix="export-", dir=scratch))
        try:
            rows.append(row(name, export(args.converter.resolve(), model(folder), folder)))
            print(rows[-1], flush=True)
        finally:
            shutil.rmtree(folder)

    for mib in filter(None, args.mib.split(",")):
        measure(f"generated, {mib} MiB", lambda folder: make(folder, int(mib)))
    for named in args.models:
        name, path = named.split("=", 1)
        measure(name, lambda _: Path(path).resolve())
    if args.out:
        columns = ["model", "source, MiB", "int8 base, MiB", "s", "CPU s", "peak RSS, MiB", "private, MiB"]
        head, rule = f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)
        about = f"{datetime.date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end."
        text = args.out.read_text()
        before, after = text.split("<!-- table -->")[0], text.split("<!-- /table -->")[1]
        args.out.write_text("\n".join([before + "<!-- table -->", about, "", head, rule, *rows, "<!-- /table -->"]) + after)


if __name__ == "__main__":
    main()
