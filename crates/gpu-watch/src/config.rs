//! What is watched, and how patiently.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{Glob, GlobMatcher, GlobSet, GlobSetBuilder};

/// What to watch. [`Config::new`] fills in everything but the roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directories (their direct entries count), files, or globs with wildcards in the last part.
    pub roots: Vec<PathBuf>,
    /// The file that comes first among those of one root; the others follow by name.
    pub first: String,
    /// Files of a directory that belong to the set: patterns over the name or the whole path.
    pub include: Vec<String>,
    /// Files that do not belong to it, whatever else is said of them.
    pub exclude: Vec<String>,
    /// Files whose changes are reported and that are not read.
    pub log_only: Vec<String>,
    /// How long it must be quiet before a change is read; at most [`Config::DELAY_MAX`].
    pub reload_delay: Duration,
    /// A change is read at the latest this long after the first sign of it, quiet or not.
    pub max_wait: Duration,
    /// Time between two looks at the content without any sign of a change;
    /// [`Config::POLL_MIN`] to [`Config::POLL_MAX`].
    pub poll: Duration,
    /// A set that lost a file, or holds an empty one, is delivered only after it stayed so for this long.
    pub unsettled: Duration,
    /// Where signs of a change come from.
    pub backend: BackendChoice,
}

/// Where signs of a change come from. The content is looked at every [`Config::poll`] with either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The file system's own events, or the poll alone where there are none.
    Auto,
    /// The poll alone.
    Poll,
}

/// A configuration that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The working directory is gone, and a root is relative to it.
    #[error("`{0}` cannot be made absolute")]
    Absolute(PathBuf),
    /// A pattern that is no glob.
    #[error("`{pattern}` is no glob: {reason}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A root with a wildcard before its last part.
    #[error("`{0}` has a wildcard before its last part")]
    GlobInDirectory(PathBuf),
    /// A duration out of its range.
    #[error("`{name}` must be between {least:?} and {most:?}, not {found:?}")]
    Interval {
        /// The field.
        name: &'static str,
        /// The least value.
        least: Duration,
        /// The largest value.
        most: Duration,
        /// The value.
        found: Duration,
    },
    /// Nothing to watch.
    #[error("there is nothing to watch")]
    NoRoots,
    /// More than [`Config::ROOTS_MAX`] roots.
    #[error("there are more than {} roots", Config::ROOTS_MAX)]
    TooManyRoots,
}

impl Config {
    /// The longest quiet period, and the longest wait of any kind for a change to settle.
    pub const DELAY_MAX: Duration = Duration::from_secs(60);
    /// The shortest time between two looks.
    pub const POLL_MIN: Duration = Duration::from_millis(10);
    /// The longest time between two looks.
    pub const POLL_MAX: Duration = Duration::from_secs(3600);
    /// A configuration with more roots is refused.
    pub const ROOTS_MAX: usize = 64;

    /// TOML files below `roots`, read 200 ms after the last sign of a change.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            first: "default.toml".to_owned(),
            include: vec!["**/*.toml".to_owned()],
            exclude: Vec::new(),
            log_only: Vec::new(),
            reload_delay: Duration::from_millis(200),
            max_wait: Duration::from_secs(2),
            poll: Duration::from_secs(2),
            unsettled: Duration::from_secs(2),
            backend: BackendChoice::Auto,
        }
    }

    /// Whether a file at `path`, if it were there, would be part of the set: in the directory of a root,
    /// under a name that is included.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn takes(&self, path: &Path) -> Result<bool, ConfigError> {
        let scope = Scope::parse(self)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(false);
        };
        let content =
            |root: &&Root| root.directory() == directory && scope.role(root, name) == Role::Content;
        Ok(scope.roots.iter().any(|root| content(&root)))
    }
}

/// A [`Config`] that makes sense: absolute roots and compiled patterns.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) roots: Vec<Root>,
    pub(crate) first: OsString,
    include: GlobSet,
    exclude: GlobSet,
    log_only: GlobSet,
}

/// Where files of the set are.
#[derive(Debug)]
pub(crate) enum Root {
    /// The entries of a directory whose names match.
    Glob {
        directory: PathBuf,
        pattern: GlobMatcher,
    },
    /// A directory or a file, whichever it is when it is looked at.
    Path(PathBuf),
}

/// What a file is to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its bytes are part of it.
    Content,
    /// It is nothing to it.
    Foreign,
    /// Its changes are told.
    LogOnly,
}

impl Scope {
    pub(crate) fn parse(config: &Config) -> Result<Self, ConfigError> {
        match config.roots.len() {
            0 => return Err(ConfigError::NoRoots),
            1..=Config::ROOTS_MAX => {}
            _ => return Err(ConfigError::TooManyRoots),
        }
        let zero = Duration::ZERO;
        within("reload_delay", config.reload_delay, zero, Config::DELAY_MAX)?;
        within(
            "max_wait",
            config.max_wait,
            config.reload_delay,
            Config::DELAY_MAX,
        )?;
        within("unsettled", config.unsettled, zero, Config::DELAY_MAX)?;
        within("poll", config.poll, Config::POLL_MIN, Config::POLL_MAX)?;
        Ok(Self {
            roots: config
                .roots
                .iter()
                .map(|root| Root::parse(root))
                .collect::<Result<_, _>>()?,
            first: OsString::from(&config.first),
            include: globs(&config.include)?,
            exclude: globs(&config.exclude)?,
            log_only: globs(&config.log_only)?,
        })
    }

    /// The role of the entry `name` of the directory of `root`. Hidden files have none: they belong to
    /// editors and to the machinery of whoever swaps directories.
    pub(crate) fn role(&self, root: &Root, name: &OsStr) -> Role {
        if name.as_encoded_bytes().starts_with(b".") {
            return Role::Foreign;
        }
        let path = root.directory().join(name);
        let matches = |set: &GlobSet| set.is_match(name) || set.is_match(&path);
        let included = match root {
            Root::Glob { pattern, .. } => pattern.is_match(Path::new(name)),
            Root::Path(_) => matches(&self.include),
        };
        match included {
            _ if matches(&self.exclude) => Role::Foreign,
            _ if matches(&self.log_only) => Role::LogOnly,
            true => Role::Content,
            false => Role::Foreign,
        }
    }

    /// Whether a file that is a root itself was excluded.
    pub(crate) fn excludes(&self, file: &Path) -> bool {
        self.exclude.is_match(file)
            || file
                .file_name()
                .is_some_and(|name| self.exclude.is_match(name))
    }
}

impl Root {
    fn parse(path: &Path) -> Result<Self, ConfigError> {
        let absolute =
            std::path::absolute(path).map_err(|_| ConfigError::Absolute(path.to_owned()))?;
        let wild = |text: &OsStr| {
            text.as_encoded_bytes()
                .iter()
                .any(|byte| b"*?[{".contains(byte))
        };
        if !wild(absolute.as_os_str()) {
            return Ok(Self::Path(absolute));
        }
        let (Some(directory), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Ok(Self::Path(absolute));
        };
        if wild(directory.as_os_str()) {
            return Err(ConfigError::GlobInDirectory(path.to_owned()));
        }
        Ok(Self::Glob {
            directory: directory.to_owned(),
            pattern: glob(&name.to_string_lossy())?.compile_matcher(),
        })
    }

    /// The directory whose entries are looked at, if this is one.
    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Glob { directory, .. } => directory,
            Self::Path(path) => path,
        }
    }
}

fn within(
    name: &'static str,
    found: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), ConfigError> {
    match found >= least && found <= most {
        true => Ok(()),
        false => Err(ConfigError::Interval {
            name,
            least,
            most,
            found,
        }),
    }
}

fn globs(patterns: &[String]) -> Result<GlobSet, ConfigError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern)?);
    }
    set.build()
        .map_err(|error| bad_glob(&patterns.join(" "), &error))
}

fn glob(pattern: &str) -> Result<Glob, ConfigError> {
    Glob::new(pattern).map_err(|error| bad_glob(pattern, &error))
}

fn bad_glob(pattern: &str, error: &globset::Error) -> ConfigError {
    ConfigError::Glob {
        pattern: pattern.to_owned(),
        reason: error.kind().to_string(),
    }
}
