"""openWakeWord's front end, exported, against onnxruntime on its source.

    tests/setup-wakeword.sh
    python tests/bench/wakeword.py [--scratch DIR]

Both graphs, float and int8, on generated sounds: a second of tones with noise for the spectrogram, and for the embedding 76 rows
of what onnxruntime's spectrogram makes of them. Prints the largest difference (of the largest value) and the mean cosine of
the embeddings; exit code 1 when the float export differs by more than 1e-4. The binaries are taken from the environment:
CONVERTER and PERSONALIZE, else target/debug/. Needs numpy, onnx, onnxruntime.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "onnxruntime"))
from compare import binary, command, session  # noqa: E402

RATE, SOUNDS, TOLERANCE = 16_000, 8, 1e-4


def sounds() -> np.ndarray:
    """[SOUNDS, RATE] in the range of 16-bit samples: a few tones each, with noise."""
    random = np.random.default_rng(1)
    time = np.arange(RATE) / RATE
    tones = [sum(np.sin(2 * np.pi * f * time) for f in random.uniform(100, 4000, 4)) for _ in range(SOUNDS)]
    noise = random.normal(0, 0.3, (SOUNDS, RATE))
    return ((np.stack(tones) + noise) * 3000).astype(np.float32)


def check(name: str, x: np.ndarray, scratch: Path) -> bool:
    """Exports one graph and prints a line for each quantization; whether the float export agrees."""
    source = ROOT / "target" / "wakeword" / f"{name}.onnx"
    if not source.is_file():
        sys.exit(f"error: no {source}; run tests/setup-wakeword.sh")
    runner = session(source, basic=True)
    (feed,) = (i.name for i in runner.get_inputs())
    expected = runner.run(None, {feed: x})[0]
    data = scratch / f"{name}.npz"
    np.savez(data, **{feed: x})
    agrees = False
    for quant in ("none", "int8"):
        base, out = scratch / f"{name}.{quant}", scratch / "out.npz"
        command(binary("converter"), "export", source, "--out", base, "--quant", quant)
        command(binary("personalize"), "predict", "--base", base, "--data", data, "--out", out)
        (found,) = dict(np.load(out)).values()
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        a, b = (v.reshape(len(x), -1) for v in (found, expected))
        cosine = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        size = sum(f.stat().st_size for f in base.iterdir())
        print(f"{name} {quant:4} {source.stat().st_size} -> {size} bytes, differs by {off:.1e}, cosine {cosine:.6f}")
        agrees |= quant == "none" and off <= TOLERANCE
    return agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="keep the exported files here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        x = sounds()
        runner = session(ROOT / "target" / "wakeword" / "melspectrogram.onnx", basic=True)
        mel = runner.run(None, {runner.get_inputs()[0].name: x})[0].reshape(SOUNDS, -1, 32)
        rows = (mel / 10 + 2)[:, :76, :, None].astype(np.float32)
        agree = [check("melspectrogram", x, scratch), check("embedding_model", rows, scratch)]
    sys.exit(int(not all(agree)))


if __name__ == "__main__":
    main()
