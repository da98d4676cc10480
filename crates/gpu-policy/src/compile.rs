//! From the bytes of a file set to a policy, all or nothing.

use gpu_lease::Policy;

use crate::diagnostic::{Diagnostic, Diagnostics, Problem, Problems};
use crate::draft::Draft;
use crate::overrides::Override;
use crate::text::{DEFAULT_FILE, FILES_MAX, Text};

/// A policy file as it was read, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path or the name; shown in diagnostics.
    pub name: String,
    /// The whole content.
    pub bytes: Vec<u8>,
}

impl SourceFile {
    /// A file of this name with this content.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// The policy that `files` say, in the given order, with `overrides` on top, in the order of their origins.
///
/// Its `source.hash` is over the settings that come out, not over the bytes that went in: files that
/// differ in comments, spelling or grouping alone compile to equal policies. `source.files` has the
/// texts as they were, without byte order marks; overrides are not part of it.
///
/// # Errors
/// Every error of the whole set at once. A set without [`DEFAULT_FILE`] and a file without a single byte
/// are errors too; a caller that expects a save in progress waits before it asks.
pub fn compile(files: &[SourceFile], overrides: &[Override]) -> Result<Policy, Diagnostics> {
    compile_with_warnings(files, overrides).map(|compiled| compiled.policy)
}

/// A policy that can be served, and what is odd about it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The policy.
    pub policy: Policy,
    /// In file order, at most [`crate::DIAGNOSTICS_MAX`].
    pub warnings: Vec<Diagnostic>,
}

/// [`compile`], with the warnings.
///
/// # Errors
/// As [`compile`].
pub fn compile_with_warnings(
    files: &[SourceFile],
    overrides: &[Override],
) -> Result<Compiled, Diagnostics> {
    let mut problems = Problems::default();
    complain_about_set(files, &mut problems);
    let texts = texts(files, &mut problems);
    let overrides = Override::in_order(overrides);
    let draft = Draft::read(&texts, &overrides, &mut problems);
    let parts = draft.parts(&mut problems);
    let warnings = problems.into_result()?;
    let policy = draft.into_policy(parts, &texts);
    Ok(Compiled { policy, warnings })
}

/// File names in the order in which they apply: [`DEFAULT_FILE`], then the others by name.
pub fn load_order(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort_by_cached_key(|name| (!is_default(name), name.clone()));
    names
}

/// The files that are text at all.
pub(crate) fn texts(files: &[SourceFile], problems: &mut Problems) -> Vec<Text> {
    let files = files.iter().take(FILES_MAX).enumerate();
    files
        .filter_map(|(index, file)| Text::read(index, file, problems))
        .collect()
}

fn complain_about_set(files: &[SourceFile], problems: &mut Problems) {
    let hint =
        format!("an operator's settings begin with `{DEFAULT_FILE}`; it may be all comments");
    if files.is_empty() {
        problems.add_to_set(
            DEFAULT_FILE,
            Problem::new("there are no policy files").hint(hint),
        );
    } else if !files.iter().any(|file| is_default(&file.name)) {
        let problem = Problem::new(format!(
            "there is no `{DEFAULT_FILE}` among the policy files"
        ));
        problems.add_to_set(DEFAULT_FILE, problem.hint(hint));
    }
    if files.len() > FILES_MAX {
        let problem = Problem::new(format!("there are more than {FILES_MAX} policy files"));
        problems.add_to_set(DEFAULT_FILE, problem);
    }
}

fn is_default(name: &str) -> bool {
    name.rsplit('/').next() == Some(DEFAULT_FILE)
}
