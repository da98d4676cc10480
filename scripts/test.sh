#!/usr/bin/env bash
# Runs every test. Arguments go to nextest, e.g. `scripts/test.sh --package gpu-lease`.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh test
./scripts/python-env.sh
exec cargo nextest run --workspace --locked --no-fail-fast "$@"
