#!/usr/bin/env bash
# Measures what adapters cost on MiniLM and in a store of 10,000 users; writes docs/benchmarks/adapters.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tests/setup-minilm.sh
converter=${CONVERTER:-}
if [ -z "$converter" ]; then
    cargo build --release --locked -p inlay-converter
    converter=${CARGO_TARGET_DIR:-target}/release/converter
fi
cargo build --release --locked -p inlay-runtime --example adapter_times
bases=$(mktemp -d)
trap 'rm -rf "$bases"' EXIT
for quant in int8 int4; do
    "$converter" export target/minilm/encoder.onnx --quant $quant --out "$bases/$quant" >/dev/null
done
{
    echo "# Adapters: swapping, mixing, merging, storing"
    echo
    echo "all-MiniLM-L6-v2, one thread of the CPU. LoRA of rank 8 at the queries and values of all layers, random values. Medians."
    echo "Made by \`tests/bench/adapters.sh\`."
    echo
    "${CARGO_TARGET_DIR:-target}/release/examples/adapter_times" "$bases/int8" "$bases/int4"
    echo
    echo "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores; $(uname -sr); $(rustc --version | cut -d' ' -f1,2);" \
        "commit $(git rev-parse --short HEAD); $(date +%F); load average before the run $(cut -d' ' -f1 /proc/loadavg)."
} >"$bases/adapters.md"
mv "$bases/adapters.md" docs/benchmarks/adapters.md
