#!/usr/bin/env bash
# Makes target/python, a venv with the independent NVML readers that the tests of fake-nvml run.
# Does nothing when it is already there with these versions. Needs python3 with venv (Debian: python3-venv).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PACKAGES=(nvidia-ml-py==13.615.71 nvitop==1.7.2 gpustat==1.1.1)
readonly VENV=target/python
readonly STAMP="$VENV/packages"

if [[ -x $VENV/bin/python && "$(cat "$STAMP" 2>/dev/null)" == "${PACKAGES[*]}" ]]; then
    exit 0
fi
if ! python3 -c 'import ensurepip' 2>/dev/null; then
    echo 'python-env: python3 has no venv; install the package python3-venv' >&2
    exit 1
fi
rm -rf "$VENV"
python3 -m venv "$VENV"
"$VENV/bin/pip" install --quiet --disable-pip-version-check "${PACKAGES[@]}"
printf '%s\n' "${PACKAGES[*]}" >"$STAMP"
