//! Policy text to [`gpu_lease::Policy`].
//!
//! Owns the TOML schema of policy files, the layers (built-in, files, environment, `--set`, API), the
//! diagnostics, the hash and the differences of policies. Must never know which paths are watched,
//! how bytes were read, or who asks for a policy over a socket.

mod cel;
mod compile;
mod diagnostic;
mod draft;
mod hours;
mod json;
mod literals;
mod overrides;
mod rules;
mod schema;
mod section;
mod select;
mod settings;
mod spelling;
mod suggest;
mod tables;
mod text;
mod units;
mod value;

pub use compile::{Compiled, SourceFile, compile, compile_with_warnings, load_order};
pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Diagnostics, Severity};
pub use overrides::{
    ENV_PREFIX, FROM_API, FROM_COMMAND_LINE, FROM_ENVIRONMENT, OVERRIDE_BYTES_MAX, Override,
    OverrideError,
};
pub use schema::schema_json;
pub use select::{SELECT_BYTES_MAX, SELECT_IDS_MAX, SelectError, parse_select};
pub use settings::{Change, Layers, diff, diff_sources};
pub use text::{DEFAULT_FILE, FILE_BYTES_MAX, FILES_MAX};
