#!/usr/bin/env bash
# The long forms of the evidence, for about so many minutes after everything is built (60 if nothing is said): the
# first half is new seeds for the simulated lives; then come a larger small case and, in rounds of a minute or two
# and at least one of them, more lives of the real daemon and more histories. It ends with the round in which the
# time is up, or with the first thing that does not hold, and then not with 0. A seed that fails is printed with the
# shortest life that shows it; what the real daemon does depends on the machine too. The second argument is the
# first seed; the time of day if it is not said.
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
seed=$((10#$seed))
first=$seed

./scripts/install-deps.sh test
cargo build --profile sim --locked --package gpu-sim
cargo nextest run --workspace --locked --no-run
trap 'code=$?; [ $code = 0 ] || echo "error: something did not hold; again: scripts/soak.sh $minutes $first" >&2' EXIT
end=$((SECONDS + minutes * 60))
echo "seed $first, $minutes minutes"

"$target/sim/gpu-manager-sim" soak --minutes $(((minutes + 1) / 2)) --from "${first}000000"
# Needs about 1 GiB of memory for every 4 million.
"$target/sim/gpu-manager-sim" exhaustive --large 4000000
rounds=0
until [ $rounds -gt 0 ] && [ $SECONDS -ge $end ]; do
    EVIDENCE_SEED=$seed EVIDENCE_LIVES=10 EVIDENCE_HISTORIES=6 ./scripts/test.sh \
        --success-output final -E 'test(crashes::) + test(linearizable::)'
    seed=$((seed + 100))
    rounds=$((rounds + 1))
done
echo "all of it held: seed $first, $rounds rounds with the real daemon"
