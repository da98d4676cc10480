#!/usr/bin/env bash
# Builds the broker and runs it in the foreground on 127.0.0.1:8080, with dev mode and hot reload on.
# Usage: ./start-hotreload.sh [flags of `gpu-manager serve`]
set -euo pipefail
cd "$(dirname "$0")"
./scripts/install-deps.sh run
cargo build --locked --package gpu-manager
bin=$PWD/target/debug/gpu-manager

# So that `gpu-manager` works in a second shell; another program of that name is left alone.
for dir in "$HOME/.local/bin" /usr/local/bin; do
    case ":$PATH:" in *":$dir:"*) ;; *) continue ;; esac
    [ -d "$dir" ] && [ -w "$dir" ] || continue
    if [ ! -e "$dir/gpu-manager" ] || [ "$(readlink "$dir/gpu-manager" 2>/dev/null)" = "$bin" ]; then
        ln -sf "$bin" "$dir/gpu-manager"
        echo "command   $dir/gpu-manager"
        break
    fi
done
command -v gpu-manager >/dev/null || echo "command   export PATH=\"$PWD/target/debug:\$PATH\""

exec "$bin" serve --dev --hot-reload \
    --config scripts/gpu-manager.dev.toml \
    --policy-dir policies \
    --state-dir .gpu-manager-dev "$@"
