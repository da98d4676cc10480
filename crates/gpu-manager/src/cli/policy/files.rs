//! Policy files as a person names them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gpu_api::{POLICY_FILES_MAX, PolicyText};
use gpu_watch::{FileSet, WatchedFile};

use crate::cli::exit::Failure;
use crate::cli::output::clean;

/// The texts beneath `roots`, read once and in the order in which they apply, as the broker reads them.
pub(super) fn read(roots: Vec<PathBuf>) -> Result<Vec<PolicyText>, Failure> {
    if let Some(missing) = roots.iter().find(|root| !is_glob(root) && !root.exists()) {
        return Err(Failure::usage(format!(
            "`{}` does not exist",
            missing.display()
        )));
    }
    let set = read_set(roots)?;
    match set.files.len() {
        0 => Err(Failure::usage("there are no policy files in that place")),
        1..=POLICY_FILES_MAX => set.files.into_iter().map(text).collect(),
        many => Err(Failure::usage(format!(
            "`{many}` files: {POLICY_FILES_MAX} can be checked at once"
        ))),
    }
}

/// The bytes beneath `roots`.
pub(super) fn read_set(roots: Vec<PathBuf>) -> Result<FileSet, Failure> {
    gpu_watch::read_set(&gpu_watch::Config::new(roots))
        .map_err(|error| Failure::refused(format!("failed to read the policy files: {error}")))
}

/// The files at `paths`, in that order.
pub(super) fn read_named(paths: Vec<PathBuf>) -> Result<Vec<WatchedFile>, Failure> {
    let read = |path: PathBuf| match std::fs::read(&path) {
        Ok(bytes) => Ok(WatchedFile { path, bytes }),
        Err(error) => {
            let path = path.display();
            Err(Failure::refused(format!(
                "failed to read `{path}`: {error}"
            )))
        }
    };
    paths.into_iter().map(read).collect()
}

/// A file as it is sent: named from here, where that is shorter.
pub(super) fn text(file: WatchedFile) -> Result<PolicyText, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = file
        .path
        .strip_prefix(&here)
        .unwrap_or(&file.path)
        .display()
        .to_string();
    let text = String::from_utf8(file.bytes)
        .map_err(|_| Failure::refused(format!("`{shown}` is not UTF-8 text")))?;
    let name = shown
        .parse()
        .map_err(|error| Failure::usage(format!("the name of `{}`: {error}", clean(&shown))))?;
    Ok(PolicyText { name, text })
}

/// The same texts under names that a directory can have.
pub(super) fn without_directories(texts: Vec<PolicyText>) -> Result<Vec<PolicyText>, Failure> {
    let mut names = BTreeSet::new();
    let mut bare = Vec::new();
    for PolicyText { name, text } in texts {
        let file_name = Path::new(&*name).file_name().and_then(|name| name.to_str());
        let file_name = file_name.unwrap_or(&name).to_owned();
        if !names.insert(file_name.clone()) {
            let why = format!("two files are called `{}`", clean(&file_name));
            return Err(Failure::usage(why).hint("a policy directory has one file of a name"));
        }
        let name = file_name
            .parse()
            .map_err(|error| Failure::usage(format!("the name of `{}`: {error}", clean(&name))))?;
        bare.push(PolicyText { name, text });
    }
    Ok(bare)
}

fn is_glob(root: &Path) -> bool {
    let bytes = root.as_os_str().as_encoded_bytes();
    bytes.iter().any(|byte| b"*?[{".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sent_by_their_names() {
        let file = |name: &str| PolicyText {
            name: name.parse().expect("short"),
            text: String::new(),
        };
        let bare = without_directories(vec![file("policies/default.toml"), file("/x/50.toml")]);
        let names: Vec<String> = bare
            .expect("two names")
            .into_iter()
            .map(|text| text.name.into_string())
            .collect();
        assert_eq!(names, ["default.toml", "50.toml"]);
        assert!(without_directories(vec![file("a/x.toml"), file("b/x.toml")]).is_err());
    }
}
