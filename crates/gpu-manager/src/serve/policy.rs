//! Between policy files and the broker: what to start with, what to reload, what to watch.

use std::sync::Arc;

use gpu_broker::{Override, ReloadState, Reloader, SourceFile, StartPolicy, Started};
use gpu_lease::Policy;
use gpu_watch::{Event, FileSet, Watch};

use super::config::Config;

/// What stands for the files where there are none: everything built in.
const BUILT_IN: &str = "# no policy directory was found\n";

/// The files as they are now; `None` if there is no policy directory.
pub(super) fn overrides(config: &Config) -> Result<Vec<Override>, String> {
    let variables = std::env::vars_os();
    let mut layers = Override::from_env(variables).map_err(|error| error.to_string())?;
    for text in &config.policy_sets {
        layers.push(Override::parse("--set", text).map_err(|error| error.to_string())?);
    }
    Ok(layers)
}

fn built_in() -> Vec<SourceFile> {
    vec![SourceFile {
        name: "default.toml".to_owned(),
        bytes: BUILT_IN.as_bytes().to_vec(),
    }]
}

fn sources(set: &FileSet) -> Vec<SourceFile> {
    let source = |file: &gpu_watch::WatchedFile| SourceFile {
        name: file.path.display().to_string(),
        bytes: file.bytes.clone(),
    };
    set.files.iter().map(source).collect()
}
