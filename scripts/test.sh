#!/usr/bin/env bash
# Runs every test. Arguments go to nextest, e.g. `scripts/test.sh --package gpu-lease`.
# A run of every test also writes tests/hot-reload.md.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh test
./scripts/python-env.sh
run=(cargo nextest run --workspace --locked --no-fail-fast)
if [ $# -gt 0 ]; then
    exec "${run[@]}" "$@"
fi

report=target/nextest/default/junit.xml # where .config/nextest.toml has it written
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rm -f "$report"
if [ -t 1 ]; then
    export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-always}
fi
code=0
"${run[@]}" 2>&1 | tee "$log" || code=${PIPESTATUS[0]}
if [ -f "$report" ]; then
    # The run has built it. What is wrong with the table is said in the table, and no failure of a test.
    "${CARGO_TARGET_DIR:-target}/debug/hot-reload-table" "$report" || true
    # The closing line of the runner is the closing line.
    grep -a 'Summary' "$log" | tail -n 1 || true
fi
exit "$code"
