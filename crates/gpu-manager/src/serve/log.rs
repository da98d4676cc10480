//! What the broker says of itself, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Takes the level from `GPU_MANAGER_LOG`, else `RUST_LOG`, in any case; dev mode says more by itself.
pub(super) fn start(dev: bool) {
    let default = if dev {
        "info,gpu_bridge=debug,gpu_broker=debug"
    } else {
        "info"
    };
    let named = ["GPU_MANAGER_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let directives = named.unwrap_or_else(|| default.to_owned()).to_lowercase();
    let filter = EnvFilter::try_new(&directives).unwrap_or_else(|error| {
        eprintln!("warning: log filter `{directives}` is not understood: {error}");
        EnvFilter::new(default)
    });
    // A second start in one process, as in tests, keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init();
}
