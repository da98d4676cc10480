#!/usr/bin/env bash
# Loads a million mutated policy sets in a release build: none may panic, take 50 ms or 64 MiB.
# Usage: scripts/fuzz-policy.sh [CASES] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
export GPU_POLICY_FUZZ_CASES=${1:-1000000} GPU_POLICY_SEED=${2:-$RANDOM}
exec nice -n 10 cargo test --locked --release --package gpu-policy --test fuzz -- --nocapture
