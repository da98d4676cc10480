#!/usr/bin/env bash
# Installs what is missing on a Debian machine: for `run`, or also for `test`.
set -euo pipefail
what=${1:-run}

packages=()
need() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed' || packages+=("$1"); }

need libvulkan1
need mesa-vulkan-drivers
command -v cc >/dev/null || packages+=(build-essential)
if [ "$what" = test ]; then
    need chromium
    need faketime
    need util-linux
    need strace
    command -v curl >/dev/null || packages+=(curl)
    python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
fi
if [ ${#packages[@]} -gt 0 ]; then
    echo "installing ${packages[*]}"
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "error: no Rust toolchain" >&2
    echo "hint: this project needs Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); install it with rustup (https://rustup.rs)" >&2
    exit 1
fi
if [ "$what" = test ] && ! cargo nextest --version >/dev/null 2>&1; then
    cargo install --locked cargo-nextest
fi
