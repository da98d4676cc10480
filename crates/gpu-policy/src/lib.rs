//! Policy text to [`gpu_lease::Policy`].
//!
//! Owns the TOML schema of policy files, the layers (built-in, files, environment, `--set`), the
//! diagnostics, the hash and the differences of policies. Must never know which paths are watched,
//! how bytes were read, or who asks for a policy over a socket.

mod cel;
mod compile;
mod diagnostic;
mod draft;
mod hours;
mod overrides;
mod rules;
mod section;
mod select;
mod settings;
mod suggest;
mod text;
mod units;
mod value;

pub use compile::{SourceFile, compile, load_order};
pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Diagnostics};
pub use overrides::{ENV_PREFIX, OVERRIDE_BYTES_MAX, Override, OverrideError};
pub use select::{SELECT_BYTES_MAX, SELECT_IDS_MAX, SelectError, parse_select};
pub use settings::{Change, diff};
pub use text::{DEFAULT_FILE, FILE_BYTES_MAX, FILES_MAX};
