#!/usr/bin/env bash
# The part of the evidence that is simulated: ten thousand lives of the broker, every life of the small case,
# and the planted bugs. The figures go to target/evidence, and from there to docs/reliability.md.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
figures=$target/evidence
# What a story of an earlier checkout left is no figure of this one.
rm -rf "$figures"
mkdir -p "$figures"

sim() {
    "$target/sim/gpu-manager-sim" --evidence "$figures/$1.json" "${@:2}"
}

cargo build --profile sim --locked --package gpu-sim
sim simulation run
sim exhaustive exhaustive
# Apart from those above: they run on what is shipped, without anything that can be planted.
cargo build --profile sim --locked --package gpu-sim --features canaries
sim canaries canaries
