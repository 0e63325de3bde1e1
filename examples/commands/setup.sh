#!/usr/bin/env bash
# Lays the classifier of the commands beside MiniLM's weights in target/minilm, which tests/setup-minilm.sh fetches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tests/setup-minilm.sh
cp examples/commands/commands.onnx target/minilm/
