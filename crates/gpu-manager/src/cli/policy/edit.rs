//! `policy edit`: a policy file is checked and planned before it is saved, and loaded afterwards.

use std::ffi::OsString;
use std::path::{self, Path, PathBuf};
use std::process::Command;

use gpu_api::{PolicyCheckRequest, PolicyPlan, PolicyText, ReloadOutcome, ReloadRequest};
use gpu_watch::WatchedFile;

use super::save::{self, Draft, Lock, SaveError};
use super::{files, load};
use crate::cli::args::EditArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{note, print};
use crate::cli::show::{diagnostic, plan as show};
use crate::cli::signals::Signals;
use crate::cli::{Done, ask};
use crate::offline;

const DEFAULT_FILE: &str = "default.toml";

/// The file that is edited, and the set that it is part of.
#[derive(Debug)]
struct Place {
    /// Where its text is, links followed.
    target: PathBuf,
    /// Its place in `set`; behind the last if it is new.
    index: usize,
    /// All files of the set.
    set: Vec<WatchedFile>,
}

/// Edits until the set is fit or somebody gives up.
pub(super) async fn edit(context: &Context, args: EditArgs) -> Done {
    let place = find(context, args.file.as_deref()).await?;
    let _lock = Lock::take(place.directory())?;
    let before = save::read(&place.target)?;
    let draft = Draft::of(&place.target, before.as_deref().unwrap_or_default())?;
    // Ctrl-C is for the editor.
    let _signals = Signals::new()?;
    loop {
        run_editor(draft.path())?;
        let text = draft.read()?;
        if before.as_ref() == Some(&text) || (before.is_none() && text.is_empty()) {
            print("nothing was changed\n")?;
            return Ok(exit::OK);
        }
        let found = examine(context, &place, &text).await?;
        match found.next(args.yes)? {
            Next::Edit => {}
            Next::Discard => return Err(Failure::refused("nothing was saved")),
            Next::Save => {
                if let Err(error) = save::replace(&place.target, before.as_deref(), &text) {
                    let written = draft.keep();
                    note(&format!("what you wrote is in `{}`", written.display()));
                    return Err(error.into());
                }
                return loaded(context, &place, found).await;
            }
        }
    }
}

/// What was found in the edited set.
#[derive(Debug)]
enum Found {
    /// It is fit; there is a plan if there is a broker.
    Fit(Option<Box<PolicyPlan>>),
    /// It has errors, which were shown.
    Unfit,
}

/// What is done with the edited text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Discard,
    Edit,
    Save,
}

impl Found {
    /// Asks where it has to be asked.
    fn next(&self, agreed: bool) -> Result<Next, Failure> {
        match self {
            Self::Unfit => choose("e(dit again), x (discard)? ", unfit_choice),
            Self::Fit(Some(plan)) if !agreed && show::touches(&plan.leases) => {
                choose("s(ave and load), e(dit again), x (discard)? ", fit_choice)
            }
            Self::Fit(_) => Ok(Next::Save),
        }
    }
}

/// Asks until the answer is one; nobody there is a reason to discard.
fn choose(question: &str, read: fn(&str) -> Option<Next>) -> Result<Next, Failure> {
    loop {
        match ask::ask(question)? {
            None => return Ok(Next::Discard),
            Some(answer) => match read(&answer) {
                Some(next) => return Ok(next),
                None => continue,
            },
        }
    }
}

fn unfit_choice(answer: &str) -> Option<Next> {
    match answer {
        "e" | "edit" => Some(Next::Edit),
        "x" | "discard" => Some(Next::Discard),
        _ => None,
    }
}

fn fit_choice(answer: &str) -> Option<Next> {
    match answer {
        "s" | "save" => Some(Next::Save),
        other => unfit_choice(other),
    }
}

/// Checks and plans the set with the edited text, and shows what was found.
async fn examine(context: &Context, place: &Place, text: &[u8]) -> Result<Found, Failure> {
    let texts = match place.edited(text) {
        Ok(texts) => texts,
        Err(failure) => {
            // Not UTF-8: the editor can mend that.
            failure.report();
            return Ok(Found::Unfit);
        }
    };
    match load::plan_of(context, Some(&texts)).await {
        Ok(plan) => {
            print(&show::render_plan(&plan, context.now(), context.paint))?;
            Ok(if plan.ok {
                Found::Fit(Some(Box::new(plan)))
            } else {
                Found::Unfit
            })
        }
        Err(error) if error.is_away() => {
            note(&format!("{error}; the text is checked without a plan"));
            let mut check = offline::check_policy(&texts);
            diagnostic::quote(&mut check.diagnostics, &texts);
            print(&diagnostic::render_all(&check.diagnostics, context.paint))?;
            Ok(if check.ok {
                Found::Fit(None)
            } else {
                Found::Unfit
            })
        }
        Err(error) => {
            // What was written is not lost because the broker cannot say.
            Failure::from(error).report();
            Ok(Found::Unfit)
        }
    }
}

/// Loads what was saved, as it was planned.
async fn loaded(context: &Context, place: &Place, found: Found) -> Done {
    print(&format!("saved `{}`\n", place.target.display()))?;
    let Found::Fit(Some(plan)) = found else {
        note("no broker answers: the next one reads it when it starts");
        return Ok(exit::OK);
    };
    let request = ReloadRequest {
        confirm: Some(load::hash(&plan.plan)?),
        expect_plan: None,
    };
    let result = context.client.reload(&request).await.map_err(|error| {
        let failure = Failure::from(error);
        failure.hint("it is saved, and not loaded by this: see `gpu-manager reload --status`")
    })?;
    if result.outcome == ReloadOutcome::Unchanged && plan.hash != plan.live {
        // The watch of the files was faster.
        print(&format!("generation {} is live\n", result.generation))?;
        return Ok(exit::OK);
    }
    load::tell(context, &result, false)
}

/// The file that is meant, in the set that the broker reads; without a broker, in its own directory.
async fn find(context: &Context, file: Option<&Path>) -> Result<Place, Failure> {
    let roots = match context.client.status().await {
        Ok(status) => status.policy.dirs.into_iter().map(PathBuf::from).collect(),
        Err(error) if error.is_away() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let roots = match (roots.is_empty(), file) {
        (false, _) => roots,
        (true, Some(file)) => vec![directory_of(&absolute(file)?).to_owned()],
        (true, None) => {
            return Err(Failure::usage("no broker says where its policy files are")
                .hint("name the file: `gpu-manager policy edit FILE`"));
        }
    };
    let set = read_set(context, &roots).await?;
    let known: Vec<&Path> = set.iter().map(|file| file.path.as_path()).collect();
    let chosen = pick(file, &roots, &known)?;
    let target = resolve(&chosen)?;
    let is_target = |file: &WatchedFile| resolve(&file.path).is_ok_and(|path| path == target);
    let index = set.iter().position(is_target).unwrap_or(set.len());
    let fits = |root: &PathBuf| resolve(root).is_ok_and(|root| root == directory_of(&target));
    if index == set.len() && !roots.iter().any(fits) {
        let places: Vec<String> = roots
            .iter()
            .map(|root| root.display().to_string())
            .collect();
        return Err(Failure::usage(format!(
            "`{}` is none of the policy files",
            chosen.display()
        ))
        .hint(format!("they are in {}", places.join(", "))));
    }
    Ok(Place { target, index, set })
}

/// The files that the broker reads from `roots`: it knows which of them it takes. If it cannot say, all that
/// look like policies.
async fn read_set(context: &Context, roots: &[PathBuf]) -> Result<Vec<WatchedFile>, Failure> {
    let all = || Ok(files::read_set(roots.to_vec())?.files);
    let on_disk = PolicyCheckRequest::default();
    let Ok(check) = context.client.check_policy(&on_disk).await else {
        return all();
    };
    let paths: Vec<PathBuf> = check.files.iter().map(PathBuf::from).collect();
    let is_there = |path: &PathBuf| roots.iter().any(|root| path.starts_with(root));
    if !paths.iter().all(is_there) {
        return all();
    }
    if !check.in_force {
        note(
            "the policy on disk is not the one in force: what else is there is loaded with what you save; `gpu-manager policy diff` shows it",
        );
    }
    files::read_named(paths)
}

/// The path that is meant by `file` where `known` files are in `roots`.
fn pick(file: Option<&Path>, roots: &[PathBuf], known: &[&Path]) -> Result<PathBuf, Failure> {
    let named = |name: &Path| {
        known
            .iter()
            .find(|path| path.file_name() == Some(name.as_os_str()))
    };
    match (file, known) {
        (None, [only]) => Ok(only.to_path_buf()),
        (None, _) => named(Path::new(DEFAULT_FILE))
            .map(|path| path.to_path_buf())
            .ok_or_else(|| which(known)),
        (Some(file), _) if file.exists() => absolute(file),
        // A name alone is a name in the policy directory.
        (Some(file), _) if file.components().count() == 1 => {
            let known = named(file).map(|path| path.to_path_buf());
            let new = || roots.first().map(|root| root.join(file));
            known.or_else(new).ok_or_else(|| which(&[]))
        }
        (Some(file), _) => absolute(file),
    }
}

fn which(known: &[&Path]) -> Failure {
    let names: Vec<String> = known
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let failure = Failure::usage("it is not clear which policy file to edit");
    match names.is_empty() {
        true => failure.hint("name the file: `gpu-manager policy edit FILE`"),
        false => failure.hint(format!("name one of {}", names.join(", "))),
    }
}

/// `path` with its links followed, also if only its directory exists.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    let cannot = |error| Failure::refused(format!("failed to find `{}`: {error}", path.display()));
    match (path.symlink_metadata(), path.file_name()) {
        (Err(_), Some(name)) => {
            let directory = directory_of(path).canonicalize().map_err(cannot)?;
            Ok(directory.join(name))
        }
        _ => path.canonicalize().map_err(cannot),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path::absolute(path).map_err(|error| Failure::usage(format!("`{}`: {error}", path.display())))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

impl Place {
    fn directory(&self) -> &Path {
        directory_of(&self.target)
    }

    /// The set with `text` in the place of what the file says.
    fn edited(&self, text: &[u8]) -> Result<Vec<PolicyText>, Failure> {
        let mut set = self.set.clone();
        match set.get_mut(self.index) {
            Some(file) => file.bytes = text.to_vec(),
            None => set.push(WatchedFile {
                path: self.target.clone(),
                bytes: text.to_vec(),
            }),
        }
        // A new file applies where its name puts it.
        let first = |file: &WatchedFile| file.path.file_name() != Some(DEFAULT_FILE.as_ref());
        if self.index == self.set.len() {
            set.sort_by_key(|file| (first(file), file.path.clone()));
        }
        set.into_iter().map(files::text).collect()
    }
}

fn run_editor(path: &Path) -> Result<(), Failure> {
    let editor = editor(|name| std::env::var_os(name));
    let shown = editor.to_string_lossy().into_owned();
    let mut script = editor;
    script.push(" \"$1\"");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg("sh").arg(path);
    let status = command
        .status()
        .map_err(|error| Failure::own(format!("failed to start the editor: {error}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::refused(format!(
            "the editor `{shown}` failed ({status}): nothing was saved"
        ))
        .hint("set VISUAL or EDITOR to another one")),
    }
}

/// The command line of the editor that a person wants.
fn editor(variable: impl Fn(&str) -> Option<OsString>) -> OsString {
    let wanted = ["VISUAL", "EDITOR"].into_iter().filter_map(variable);
    let mut wanted = wanted.filter(|editor| !editor.is_empty());
    wanted.next().unwrap_or_else(|| OsString::from("vi"))
}

impl From<SaveError> for Failure {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::Changed(path) => Self::refused(format!(
                "`{}` was changed by somebody else meanwhile: nothing was saved",
                path.display()
            ))
            .hint("edit it again"),
            SaveError::Io { verb, path, source } => {
                let failure =
                    Self::refused(format!("failed to {verb} `{}`: {source}", path.display()));
                match source.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        failure.hint("do it as the owner of the policy files, such as with sudo")
                    }
                    _ => failure,
                }
            }
            SaveError::Locked(path) => Self::refused(format!(
                "somebody else edits policy files in `{}`",
                path.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn the_editor_is_the_one_that_is_wanted() {
        let with = |visual: &'static str, editor: &'static str| {
            super::editor(|name| match name {
                "VISUAL" => Some(visual.into()),
                _ => Some(editor.into()),
            })
        };
        assert_eq!(with("code --wait", "nano"), "code --wait");
        assert_eq!(with("", "nano"), "nano", "set to nothing is not set");
        assert_eq!(with("", ""), "vi");
    }

    #[test]
    fn a_file_is_named_by_path_by_name_or_not_at_all() {
        let roots = [PathBuf::from("/p")];
        let default = Path::new("/p/default.toml");
        let night = Path::new("/p/50-night.toml");
        let pick = |file: Option<&str>, known: &[&Path]| {
            pick(file.map(Path::new), &roots, known).map(|path| path.display().to_string())
        };
        let table: [(Option<&str>, &[&Path], Option<&str>); 6] = [
            (None, &[night], Some("/p/50-night.toml")),
            (None, &[night, default], Some("/p/default.toml")),
            (None, &[night, Path::new("/p/60.toml")], None),
            (
                Some("50-night.toml"),
                &[night, default],
                Some("/p/50-night.toml"),
            ),
            (Some("new.toml"), &[default], Some("/p/new.toml")),
            (
                Some("/elsewhere/x.toml"),
                &[default],
                Some("/elsewhere/x.toml"),
            ),
        ];
        for (file, known, expected) in table {
            assert_eq!(pick(file, known).ok().as_deref(), expected, "{file:?}");
        }
    }

    #[test]
    fn the_set_is_planned_with_the_edited_text_in_its_place() {
        let file = |path: &str, text: &str| WatchedFile {
            path: PathBuf::from(path),
            bytes: text.as_bytes().to_vec(),
        };
        let set = vec![file("/p/default.toml", "a"), file("/p/50.toml", "b")];
        let edited = |target: &str, index: usize| {
            let place = Place {
                target: PathBuf::from(target),
                index,
                set: set.clone(),
            };
            let texts = place.edited(b"new").expect("UTF-8");
            let line = |text: PolicyText| format!("{} {}", text.name, text.text);
            texts.into_iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            edited("/p/50.toml", 1),
            ["/p/default.toml a", "/p/50.toml new"]
        );
        assert_eq!(
            edited("/p/40.toml", 2),
            ["/p/default.toml a", "/p/40.toml new", "/p/50.toml b"]
        );
    }

    #[test]
    fn what_touches_nobody_is_saved_unasked() {
        let plan = Box::new(example::plan());
        assert_eq!(Found::Fit(Some(plan)).next(false), Ok(Next::Save));
        assert_eq!(Found::Fit(None).next(false), Ok(Next::Save));
        assert_eq!(unfit_choice("s"), None, "what has errors is not saved");
        assert_eq!(fit_choice("s"), Some(Next::Save));
        assert_eq!(fit_choice("x"), Some(Next::Discard));
        assert_eq!(fit_choice(""), None);
    }
}
