#!/usr/bin/env bash
# The long forms of the evidence, for so many minutes (60 if nothing is said): new seeds for the simulated
# lives, a larger small case, and more lives of the real daemon. A seed that fails is printed with the shortest
# life that shows it; the second argument is the first seed, the time of day if it is not said.
#
#     scripts/soak.sh 480
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-60}
seed=${2:-$(date +%s)000000}
if ! [[ $minutes =~ ^[1-9][0-9]*$ && $seed =~ ^[0-9]+$ ]]; then
    echo "usage: scripts/soak.sh [MINUTES] [SEED]" >&2
    exit 2
fi
target=${CARGO_TARGET_DIR:-target}
third=$(((minutes + 2) / 3))
echo "seed $seed, $minutes minutes"

cargo build --profile sim --locked --package gpu-sim
"$target/sim/gpu-manager-sim" soak --minutes "$((minutes - 2 * third > 0 ? minutes - third : minutes))" --from "$seed"
