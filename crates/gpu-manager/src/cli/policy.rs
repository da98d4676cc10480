//! `policy check` and `policy show`.

use std::path::{Path, PathBuf};

use gpu_api::{
    Diagnostic, POLICY_FILES_MAX, Policy, PolicyCheck, PolicyCheckRequest, PolicyText, Severity,
};

use crate::cli::Done;
use crate::cli::args::PolicyCommand;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, ago, clean, note, print, print_json};
use crate::offline;

/// Checks or shows.
pub(crate) async fn policy(context: &Context, command: PolicyCommand) -> Done {
    match command {
        PolicyCommand::Check { files, output } => check(context, &files, output.json).await,
        PolicyCommand::Show(output) => show(context, output.json).await,
    }
}

async fn check(context: &Context, files: &[PathBuf], json: bool) -> Done {
    let roots = match files.is_empty() {
        true => broker_roots(context).await?,
        false => files.to_vec(),
    };
    let texts = read(roots)?;
    let request = PolicyCheckRequest {
        files: Some(texts.clone()),
    };
    let mut check = match context.client.check_policy(&request).await {
        Ok(check) => check,
        Err(error) if error.is_away() => offline::check_policy(&texts),
        Err(error) => return Err(error.into()),
    };
    quote(&mut check.diagnostics, &texts);
    match json {
        true => print_json(&check)?,
        false => print(&render_check(&check, context.paint))?,
    }
    Ok(if check.ok { exit::OK } else { exit::REFUSED })
}

async fn show(context: &Context, json: bool) -> Done {
    let policy = context.client.policy().await?;
    match json {
        true => print_json(&policy)?,
        false => print(&render_policy(&policy, context))?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

/// Adds the line of text that each is about.
fn quote(diagnostics: &mut [Diagnostic], texts: &[PolicyText]) {
    for diagnostic in diagnostics
        .iter_mut()
        .filter(|found| found.source_line.is_none() && found.line > 0)
    {
        let text = texts.iter().find(|text| *text.name == *diagnostic.file);
        let line = text.and_then(|text| text.text.lines().nth(diagnostic.line as usize - 1));
        diagnostic.source_line = line.map(ToOwned::to_owned);
    }
}

/// Where the broker reads its policy from, for a broker of this host.
async fn broker_roots(context: &Context) -> Result<Vec<PathBuf>, Failure> {
    let status = context.client.status().await.map_err(|error| {
        let failure = Failure::from(error);
        failure.hint("name the files to check: `gpu-manager policy check FILE...`")
    })?;
    match status.policy.dirs.is_empty() {
        true => {
            Err(Failure::usage("the broker reads no policy files").hint("name the files to check"))
        }
        false => Ok(status.policy.dirs.into_iter().map(PathBuf::from).collect()),
    }
}

/// The texts beneath `roots`, read once and in the order in which they apply, as the broker reads them.
fn read(roots: Vec<PathBuf>) -> Result<Vec<PolicyText>, Failure> {
    let is_glob = |root: &Path| {
        root.as_os_str()
            .as_encoded_bytes()
            .iter()
            .any(|byte| b"*?[{".contains(byte))
    };
    if let Some(missing) = roots.iter().find(|root| !is_glob(root) && !root.exists()) {
        return Err(Failure::usage(format!(
            "`{}` does not exist",
            missing.display()
        )));
    }
    let set = gpu_watch::read_set(&gpu_watch::Config::new(roots))
        .map_err(|error| Failure::refused(format!("failed to read the policy files: {error}")))?;
    match set.files.len() {
        0 => Err(Failure::usage("there are no policy files in that place")),
        1..=POLICY_FILES_MAX => set.files.into_iter().map(text).collect(),
        many => Err(Failure::usage(format!(
            "`{many}` files: {POLICY_FILES_MAX} can be checked at once"
        ))),
    }
}

fn text(file: gpu_watch::WatchedFile) -> Result<PolicyText, Failure> {
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

fn render_check(check: &PolicyCheck, paint: Paint) -> String {
    let errors = check
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .count();
    let verdict = match (check.ok, check.in_force) {
        (true, true) => paint.tone("ok, and in force", Tone::Good),
        (true, false) => paint.tone("ok", Tone::Good),
        (false, _) if errors == 1 => paint.tone("1 error", Tone::Bad),
        (false, _) => paint.tone(&format!("{errors} errors"), Tone::Bad),
    };
    let files = check
        .files
        .iter()
        .map(|file| clean(file))
        .collect::<Vec<_>>()
        .join(", ");
    let files = if files.is_empty() {
        String::new()
    } else {
        format!(" ({files})")
    };
    let diagnostics = render_diagnostics(&check.diagnostics, paint);
    let changes = check.changes.iter();
    let changes: String = changes
        .map(|change| format!("  would change {}\n", clean(change)))
        .collect();
    format!("{diagnostics}{verdict}{files}\n{changes}")
}

/// Each with its place, its line of text and a hint, in the manner of compilers.
pub(crate) fn render_diagnostics(diagnostics: &[Diagnostic], paint: Paint) -> String {
    diagnostics
        .iter()
        .map(|diagnostic| render_diagnostic(diagnostic, paint))
        .collect()
}

fn render_diagnostic(diagnostic: &Diagnostic, paint: Paint) -> String {
    let word = match diagnostic.severity {
        Severity::Error => paint.tone("error", Tone::Bad),
        Severity::Warning => paint.tone("warning", Tone::Warn),
    };
    let mut text = format!("{word}: {}\n", clean(&diagnostic.message));
    let place = match (diagnostic.line, diagnostic.column) {
        (0, _) => clean(&diagnostic.file),
        (line, 0) => format!("{}:{line}", clean(&diagnostic.file)),
        (line, column) => format!("{}:{line}:{column}", clean(&diagnostic.file)),
    };
    if !place.is_empty() {
        text.push_str(&format!("  --> {place}\n"));
    }
    if let Some(source) = &diagnostic.source_line {
        text.push_str(&excerpt(diagnostic, source, paint));
    }
    if let Some(hint) = &diagnostic.hint {
        text.push_str(&format!("  hint: {}\n", clean(hint)));
    }
    text
}

fn excerpt(diagnostic: &Diagnostic, source: &str, paint: Paint) -> String {
    let number = diagnostic.line.to_string();
    let margin = " ".repeat(number.len());
    // A tab is one column to the compiler and must be one to the caret.
    let source = clean(&source.replace('\t', " "));
    let caret = " ".repeat(diagnostic.column.saturating_sub(1) as usize);
    let caret = match diagnostic.column {
        0 => String::new(),
        _ => format!("  {margin} | {caret}{}\n", paint.tone("^", Tone::Bad)),
    };
    format!("  {margin} |\n  {number} | {source}\n{caret}")
}

fn render_policy(policy: &Policy, context: &Context) -> String {
    let hash = policy.hash.get(..12).unwrap_or(&policy.hash);
    let mut text = format!(
        "# generation {} ({hash}), in force for {}\n",
        policy.generation,
        ago(&policy.loaded_at, context.now())
    );
    if policy.degraded {
        note(
            "this is the last good policy from the store: the files on disk did not compile at the start",
        );
    }
    for setting in &policy.overrides {
        text.push_str(&format!("# shadowed by {}\n", clean(&setting.setting)));
    }
    if policy.files.is_empty() {
        text.push_str("# no files: what is built in holds\n");
    }
    for file in &policy.files {
        text.push_str(&format!(
            "\n# --- {}\n{}\n",
            clean(&file.path),
            file.text.trim_end()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_points_at_its_place() {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: "default.toml".to_owned(),
            line: 12,
            column: 3,
            message: "unknown key `prioritty`".to_owned(),
            hint: Some("did you mean `priority`?".to_owned()),
            source_line: Some("\t prioritty = 1".to_owned()),
        };
        assert_eq!(
            render_diagnostics(&[diagnostic], Paint::off()),
            "error: unknown key `prioritty`\n  \
               --> default.toml:12:3\n     \
                  |\n  \
               12 |   prioritty = 1\n     \
                  |   ^\n  \
               hint: did you mean `priority`?\n"
        );
    }
}
