//! What can be said without a broker: its store, and policy files.

use std::path::{Path, PathBuf};

use gpu_api::{Lease, PolicyCheck, PolicyText};

/// What a store holds while no broker runs on it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Where the store is.
    pub(crate) path: PathBuf,
    /// Its leases, oldest first, those that ended included.
    pub(crate) leases: Vec<Lease>,
    /// The policy that was in force.
    pub(crate) policy_generation: u64,
}

/// The store in `state_dir`, or in the usual place; `None` if there is none.
///
/// # Errors
/// A sentence if there is one that cannot be read.
pub(crate) fn read(_state_dir: Option<&Path>) -> Result<Option<Stored>, String> {
    Ok(None)
}

/// Compiles policy texts without a broker; `None` if this build cannot.
pub(crate) fn check_policy(_files: &[PolicyText]) -> Option<PolicyCheck> {
    None
}
