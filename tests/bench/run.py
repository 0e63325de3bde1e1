"""MiniLM: one LoRA training step here, in onnxruntime-training and in PyTorch + PEFT, measured in one run.

    python tests/bench/run.py [--rounds N] [--steps N] [--peers onnxruntime,torch] [--out FILE.md]

Builds nothing: `./dev bench` builds the binaries and fetches the model first. The peers' virtual environments are made
in target/bench/ (several gigabytes for PyTorch); `--onnxruntime-python` and `--torch-python` name existing ones.
Writes target/bench/minilm.json and, as Markdown, docs/benchmarks/minilm-step.md. The standard library suffices.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / "tests" / "bench"
TARGET = ROOT / "target" / "bench"
MINILM = ROOT / "target" / "minilm"
PEERS = ("onnxruntime", "torch")
SETTINGS = [(8, 64, 2), (8, 64, 1), (1, 32, 2), (1, 32, 1)]  # batch size, tokens, threads


def output(*args, env=None) -> str:
    """Runs a command and gives its standard output; its standard error is shown when it fails."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, args))} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def interpreter(peer: str) -> Path:
    """The Python of a peer's virtual environment, which is made when it is missing."""
    folder, wanted = TARGET / peer, BENCH / f"requirements-{peer}.txt"
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted.read_text():
        return python
    base = sys.executable
    if peer == "onnxruntime" and not (3, 9) <= sys.version_info[:2] <= (3, 11):
        base = next((p for v in (11, 10, 9) if (p := shutil.which(f"python3.{v}"))), None)
        if base is None:
            sys.exit("error: onnxruntime-training needs Python 3.9 to 3.11; install one or use --peers torch")
    print(f"installing {wanted.name} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    output(base, "-m", "venv", folder)
    output(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted)
    stamp.write_text(wanted.read_text())
    return python


def machine() -> dict:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in reversed(info.splitlines()) if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = fields.get("flags", "").split()
    vector = next((f for f in ("avx512f", "avx2", "sse4_2") if f in flags), platform.machine())
    return dict(
        cpu=f"{fields.get('model name', platform.processor())}, {os.cpu_count()} cores, {vector}",
        system=f"{platform.system()} {platform.release()}",
        rustc=output("rustc", "--version").strip(),
        commit=output("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip(),
        date=datetime.date.today().isoformat(),
        load_before=round(os.getloadavg()[0], 2),
    )


def measure(command: list) -> dict:
    """The JSON on the last line of a command's output."""
    return json.loads(output(*command).strip().splitlines()[-1])


def commands(args) -> dict:
    """Name -> function of a setting that gives the command to run."""
    release = ROOT / "target" / "release"
    binaries = {n: Path(os.environ.get(n.upper(), release / n)) for n in ("converter", "personalize")}
    base = TARGET / "minilm-int8"
    shutil.rmtree(base, ignore_errors=True)
    output(binaries["converter"], "export", MINILM / "classifier.onnx", "--out", base, "--quant", "int8",
           "--targets", "*.query,*.value")  # fmt: skip

    def ours(batch, seq, threads):
        setting = ["--batch-size", batch, "--seq", seq, "--threads", threads]
        return [binaries["personalize"], "bench", "--base", base, *setting, "--device", "cpu", "--json"]

    def peer(name, python):
        def make(batch, seq, threads):
            setting = ["--batch-size", batch, "--seq", seq, "--threads", threads, "--steps", args.steps]
            return [python, BENCH / f"peer_{name}.py", "--minilm", MINILM, *setting]

        return make

    found = {"Inlay int8": ours}
    for name in args.peers.split(","):
        found[name] = peer(name, getattr(args, f"{name}_python") or interpreter(name))
    return found


def markdown(result: dict) -> str:
    """The table for people."""
    names = list(result["rows"][0]["runs"])
    titles = [result["rows"][0]["runs"][n].get("peer", n) for n in names]
    m = result["machine"]
    lines = [
        "# MiniLM-L6: one LoRA training step on the CPU",
        "",
        "all-MiniLM-L6-v2, mean pooling, a 42-class head, cross-entropy; LoRA of rank 4 on query and value in all layers,",
        f"AdamW. Milliseconds a step: the median of {result['steps']} steps, the best of {result['rounds']} rounds. Lower is",
        "better. Made by `./dev bench`.",
        "",
        "| batch x tokens | threads | " + " | ".join(titles) + " | Inlay / onnxruntime |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for row in result["rows"]:
        ms = {n: row["runs"][n]["ms_per_step"] for n in names}
        ratio = f"{ms[names[0]] / ms['onnxruntime']:.2f}" if "onnxruntime" in ms else ""
        cells = [f"{row['batch_size']} x {row['seq']}", row["threads"], *(f"{ms[n]:.1f}" for n in names), ratio]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        f"{m['cpu']}; {m['system']}; {m['rustc']}; commit {m['commit']}; {m['date']}; load average before the run "
        f"{m['load_before']}.",
        "The base is int8 here and f32 in the peers.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "minilm-step.md")
    for peer in PEERS:
        parser.add_argument(f"--{peer}-python", type=Path)
    args = parser.parse_args()
    if not (MINILM / "model.safetensors").is_file():
        sys.exit(f"error: {MINILM} has no model; run tests/setup-minilm.sh")

    TARGET.mkdir(parents=True, exist_ok=True)
    about, runs = machine(), commands(args)
    if about["load_before"] > 0.5:
        print(f"warning: load average {about['load_before']}: other work disturbs these numbers", flush=True)
    rows = [dict(batch_size=b, seq=s, threads=t, runs={}) for b, s, t in SETTINGS]
    for round_ in range(args.rounds):
        for row, setting in zip(rows, SETTINGS):
            for name, command in runs.items():
                measured = measure(command(*setting))
                best = row["runs"].get(name)
                if best is None or measured["ms_per_step"] < best["ms_per_step"]:
                    row["runs"][name] = measured
                print(f"round {round_ + 1}, {setting[0]} x {setting[1]}, {setting[2]} threads, {name}: "
                      f"{measured['ms_per_step']:.1f} ms", flush=True)  # fmt: skip
    result = dict(machine=about, rounds=args.rounds, steps=args.steps, rows=rows)
    (TARGET / "minilm.json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
