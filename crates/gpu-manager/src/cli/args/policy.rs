//! The arguments of `policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gpu_api::{ExplainAt, OverridesRequest, Span, Text};

use super::{JsonArgs, WantArgs};
use crate::cli::exit;

/// Fewer digits of a hash name nothing.
const HASH_CHARS_MIN: usize = 8;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Compile policy files without loading them, and list all that is wrong.
    Check {
        /// Files, directories or globs [default: what the broker reads]
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,

        #[command(flatten)]
        output: JsonArgs,
    },
    /// Say what loading policy files would mean for every held lease and waiter. Nothing changes.
    Plan {
        /// Files, directories or globs [default: what the broker has on disk]
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,

        #[command(flatten)]
        output: JsonArgs,
    },
    /// Plan, show the plan, ask, and load. Files that are named are first written where the broker reads its own.
    #[command(after_help = exit::LOADING_HELP)]
    Apply(ApplyArgs),
    /// Go back to an earlier policy.
    #[command(after_help = exit::LOADING_HELP)]
    Rollback {
        /// The generation to go back to [default: the one before]
        #[arg(value_name = "GENERATION")]
        generation: Option<u64>,

        #[command(flatten)]
        consent: ConsentArgs,
    },
    /// Edit a policy file: it is checked and planned before it is saved, and loaded afterwards.
    #[command(after_help = exit::LOADING_HELP)]
    Edit(EditArgs),
    /// Say what on disk differs from the policy in force; exits with 1 if anything does.
    Diff(JsonArgs),
    /// Say which rules apply to a request, and where it would go or why it would wait. Takes what `acquire` takes.
    #[command(after_help = exit::EXPLAIN_HELP)]
    Explain(Box<ExplainArgs>),
    /// Set, clear and list settings above the files, for a while.
    Override {
        #[command(subcommand)]
        command: OverrideCommand,
    },
    /// Show the policy in force.
    Show(JsonArgs),
    /// Print the JSON schema of policy files, for editors.
    Schema,
}

#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// Files, directories or globs: the whole set [default: what the broker has on disk]
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Load only if the plan is this one: its hash, or the beginning of it.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    pub(crate) expect_plan: Option<Text<128>>,

    /// Throw away what is on disk and not in force.
    #[arg(long, requires = "files")]
    pub(crate) overwrite: bool,

    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
}

/// Whether somebody is asked first.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ConsentArgs {
    /// Do not ask. Without a terminal this is needed if held leases would be touched.
    #[arg(long, short)]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct EditArgs {
    /// The file: a path, or a name in the policy directory [default: the only file, else default.toml]
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Save without asking, also if held leases would be touched.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) want: WantArgs,

    /// As if it were then: `18:05` by the policy's clock, or an RFC 3339 timestamp [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<ExplainAt>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OverrideCommand {
    /// Set settings for a while; they take the place of those that were set so before.
    Set {
        /// Such as `placement.strategy=spread`.
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<(Text<256>, Text<1024>)>,

        /// When they lift by themselves, 1s to 30d.
        #[arg(long = "for", value_name = "TIME", value_parser = lifetime)]
        lifetime: Span,

        #[command(flatten)]
        consent: ConsentArgs,
    },
    /// Lift what `override set` set.
    Clear(ConsentArgs),
    /// List the settings above the files and where they come from.
    List(JsonArgs),
}

/// A hash, or its beginning.
pub(super) fn hash(text: &str) -> Result<Text<128>, String> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!(
            "`{text}` is no hash: it has other than hexadecimal digits"
        ));
    }
    if text.len() < HASH_CHARS_MIN {
        return Err(format!(
            "`{text}` is too short: give at least {HASH_CHARS_MIN} digits"
        ));
    }
    let lower = text.to_ascii_lowercase();
    lower
        .parse()
        .map_err(|error: gpu_api::TextError| error.to_string())
}

fn setting(text: &str) -> Result<(Text<256>, Text<1024>), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        format!("`{text}` is no setting: write it as `placement.strategy=spread`")
    })?;
    let unfit = |error: gpu_api::TextError| error.to_string();
    let name = name.trim().parse().map_err(unfit)?;
    Ok((name, value.trim().parse().map_err(unfit)?))
}

fn lifetime(text: &str) -> Result<Span, String> {
    let span: Span = text
        .parse()
        .map_err(|error: gpu_api::ParseSpanError| error.to_string())?;
    match (Span::from_secs(1)..=OverridesRequest::EXPIRES_IN_MAX).contains(&span) {
        true => Ok(span),
        false => Err(format!(
            "{span} is out of bounds: 1s to 30d can be asked for"
        )),
    }
}
