//! Figures of a run, for the table in docs/reliability.md: how often something was tried that held each time.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::dice::number_from_env;

const SEED: &str = "EVIDENCE_SEED";
/// What makes a run another one than that of everybody.
const SETTINGS: [&str; 3] = [SEED, "EVIDENCE_HISTORIES", "EVIDENCE_LIVES"];

/// Where the figures of this checkout are, one file for each layer of the evidence.
pub fn directory() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| here.join("target"), PathBuf::from);
    target.join("evidence")
}

/// The first seed of a story, which a person may set for another one.
pub fn first_seed() -> u64 {
    number_from_env(SEED, 1)
}

/// Keeps the figures of a layer. Only what is the same in every good run belongs there, so nothing is kept of a run
/// that was set to be another one.
///
/// # Panics
/// If the file cannot be written.
pub fn record(layer: &str, figures: &[(&str, u64)]) {
    if SETTINGS
        .iter()
        .any(|setting| env::var_os(setting).is_some())
    {
        return;
    }
    let figures: BTreeMap<&str, u64> = figures.iter().copied().collect();
    let directory = directory();
    fs::create_dir_all(&directory).expect("there is room for the evidence");
    let text = serde_json::to_vec(&figures).expect("words and numbers");
    fs::write(directory.join(format!("{layer}.json")), text).expect("there is room for it");
}
