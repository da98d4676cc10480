#!/usr/bin/env bash
# The long forms of the evidence, for about so many minutes (60 if nothing is said): the first half is new seeds
# for the simulated lives, the rest a larger small case, more lives of the real daemon and more histories, in
# rounds. A seed that fails is printed with the shortest life that shows it. The second argument is the first
# seed; the time of day if it is not said.
#
#     scripts/soak.sh 480
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-60}
seed=${2:-$(date +%s)}
if ! [[ $minutes =~ ^[1-9][0-9]*$ && $seed =~ ^[0-9]+$ ]]; then
    echo "usage: scripts/soak.sh [MINUTES] [SEED]" >&2
    exit 2
fi
target=${CARGO_TARGET_DIR:-target}
end=$((SECONDS + minutes * 60))
echo "seed $seed, $minutes minutes"

cargo build --profile sim --locked --package gpu-sim
"$target/sim/gpu-manager-sim" soak --minutes $(((minutes + 1) / 2)) --from "${seed}000000"
# Needs about 1 GiB of memory.
"$target/sim/gpu-manager-sim" exhaustive --large 4000000
while [ $SECONDS -lt $end ]; do
    EVIDENCE_SEED=$seed EVIDENCE_LIVES=40 EVIDENCE_HISTORIES=12 ./scripts/test.sh \
        --package gpu-manager --package gpu-manager-tests -E 'test(crashes::) + test(linearizable::)'
    seed=$((seed + 100))
done
