//! Whether a broker answers, and what to do about one that lives and does not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpu_api::Status;
use gpu_broker::ProcessHandle;
use gpu_client::{ClientError, Endpoint};
use tokio::time::{sleep, timeout};

use crate::cli::args::ReleaseArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::note;
use crate::owner::{OWNER_FILE, Owner};
use crate::serve::STORE_FILE;
use crate::serve::config::default_state_dir;

/// A broker says who it is within so long, whatever else it has to do.
const ANSWER_SECS_MAX: u64 = 3;
/// One that lives hangs if it was asked for so long, here and wherever its state directory says that it listens.
const SILENT_SECS_MIN: u64 = 2 * ANSWER_SECS_MAX;
/// One that starts, or has no room, is asked again so often.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A killed process that is still there hangs in the kernel.
const DEATH_SECS_MAX: u64 = 10;
const AS_ITS_USER: &str = "do this as root, or as the user that runs the broker";

/// What was found where the broker should be.
pub(super) enum Found {
    /// It answers, here, and says who it is if the caller may know.
    Answers(Context, Option<Who>),
    /// None lives; this is its state directory.
    Gone(PathBuf),
    /// One lives and does not answer.
    Silent(Silent),
}

/// A broker as it says itself. On another host, its process may have the pid of one of this host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Who {
    pid: u32,
    started_at: String,
}

/// The process of a broker of this host.
pub(super) struct Local {
    owner: Owner,
    process: ProcessHandle,
    dir: PathBuf,
}

/// A broker of this host that lives and does not answer.
pub(super) struct Silent {
    local: Local,
    /// Where it took the release, if it did.
    asked: Option<Endpoint>,
    /// What it did not do, and for how long.
    what: String,
    /// What became of the leases.
    state: &'static str,
}

/// Why nobody answered.
enum Silence {
    /// Nobody listens there, or no broker.
    Nobody(ClientError),
    /// Somebody does, and says nothing.
    Nothing,
}

/// Asks the broker at the usual or given address, else the one that its state directory names. Who gave an address
/// and no state directory means that broker and no other.
///
/// # Errors
/// None is there that could be helped from here.
pub(super) async fn find(context: &Context, args: &ReleaseArgs) -> Result<Found, Failure> {
    let give_up = Instant::now() + Duration::from_secs(SILENT_SECS_MIN);
    let endpoint = context.client.endpoint();
    let silence = match answer(context).await {
        Ok(who) => return Ok(Found::Answers(context.clone(), who)),
        Err(silence) => silence,
    };
    if context.is_stated && args.state_dir.is_none() {
        let message = match silence {
            Silence::Nobody(error) => error.to_string(),
            Silence::Nothing => unanswered(endpoint),
        };
        return Err(Failure::new(exit::NO_BROKER, message).hint(
            "nothing was changed: on the host of that broker, `--state-dir DIR` says where its state is",
        ));
    }
    match (Local::of(dir(args))?, silence) {
        (Some(local), _) => elsewhere(context, local, give_up).await,
        (None, Silence::Nobody(_)) => Ok(Found::Gone(dir(args))),
        (None, Silence::Nothing) => Err(Failure::new(
            exit::HUNG,
            format!("{}; nothing was changed", unanswered(endpoint)),
        )
        .hint(format!(
            "it is not the broker of `{}`: say where its state is with `--state-dir DIR`",
            dir(args).display()
        ))),
    }
}

/// A broker that has the directory may listen elsewhere, or be on its way up.
async fn elsewhere(context: &Context, local: Local, give_up: Instant) -> Result<Found, Failure> {
    while Instant::now() < give_up {
        let left = give_up.saturating_duration_since(Instant::now());
        if let Ok(Some((other, who))) = timeout(left, local.answer(context)).await {
            let (asked, at) = (context.client.endpoint(), other.client.endpoint());
            if at != asked {
                note(&format!(
                    "no broker answers at {asked}; that of `{}` does, at {at}",
                    local.dir.display()
                ));
            }
            return Ok(Found::Answers(other, who));
        }
        if local.ends_within(Duration::ZERO) {
            return Ok(Found::Gone(local.dir));
        }
        sleep(ASK_AGAIN).await;
    }
    Ok(Found::Silent(Silent {
        local,
        asked: None,
        what: format!("does not answer within {SILENT_SECS_MIN} s"),
        state: "nothing was changed",
    }))
}

async fn answer(context: &Context) -> Result<Option<Who>, Silence> {
    let patience = Duration::from_secs(ANSWER_SECS_MAX);
    match timeout(patience, context.client.status()).await {
        Ok(Ok(Status {
            pid, started_at, ..
        })) => Ok(Some(Who { pid, started_at })),
        Ok(Err(ClientError::Problem(_))) => Ok(None),
        Ok(Err(error @ (ClientError::Unreachable { .. } | ClientError::NotABroker { .. }))) => {
            Err(Silence::Nobody(error))
        }
        Ok(Err(ClientError::Lost { .. } | ClientError::TimedOut { .. })) | Err(_) => {
            Err(Silence::Nothing)
        }
    }
}

impl Local {
    /// The process that has the state directory, if it lives.
    fn of(dir: PathBuf) -> Result<Option<Self>, Failure> {
        let owner = Owner::alive(&dir).map_err(|error| unseen(&dir, &error))?;
        Ok(owner.map(|(owner, process)| Self {
            owner,
            process,
            dir,
        }))
    }

    /// The process of the broker that says that it is `who`, if that is the one that has the state directory: it
    /// says the same where only that one listens.
    pub(super) async fn who_is(context: &Context, args: &ReleaseArgs, who: &Who) -> Option<Self> {
        let local = Self::of(dir(args)).ok().flatten();
        let local = local.filter(|local| local.owner.pid == who.pid)?;
        let (_, found) = local.answer(context).await?;
        (found.as_ref() == Some(who)).then_some(local)
    }

    /// Asks it where it listens: everywhere at once, so that one place that is full takes no time from another.
    async fn answer(&self, context: &Context) -> Option<(Context, Option<Who>)> {
        self.answer_at(context, |_| true).await
    }

    async fn answer_at(
        &self,
        context: &Context,
        wanted: impl Fn(&Endpoint) -> bool,
    ) -> Option<(Context, Option<Who>)> {
        let places = self.owner.endpoints().filter(wanted);
        // The socket first: it has room that nobody else can take.
        let (sockets, ports): (Vec<_>, Vec<_>) = places.partition(Endpoint::has_verified_peer);
        let others = sockets.into_iter().chain(ports);
        let asked: Vec<_> = others
            .filter_map(|at| context.at(at))
            .map(|other| {
                (
                    other.clone(),
                    tokio::spawn(async move { answer(&other).await }),
                )
            })
            .collect();
        let mut found = None;
        for (other, asked) in asked {
            if found.is_some() {
                asked.abort();
            } else if let Ok(Ok(who)) = asked.await
                && who.as_ref().is_none_or(|who| who.pid == self.owner.pid)
            {
                found = Some((other, who));
            }
        }
        found
    }

    /// Whether it has ended so long from now; in doubt it has not.
    pub(super) fn ends_within(&self, patience: Duration) -> bool {
        self.process.ends_within(patience).unwrap_or(false)
    }

    /// Where its store is.
    pub(super) fn into_dir(self) -> PathBuf {
        self.dir
    }

    /// It answered, and then did not do the release.
    pub(super) fn silent_in_release(self, asked: Endpoint, patience: Duration) -> Silent {
        Silent {
            local: self,
            asked: Some(asked),
            what: format!(
                "took the release and did not answer it within {} s",
                patience.as_secs()
            ),
            state: "it may still do it",
        }
    }
}

impl Silent {
    /// Asks it once more, wherever it listens: a port that is full is silent too. Who took the release on its socket
    /// had no such reason, and answers to other questions do not count then.
    pub(super) async fn answers_elsewhere(&self, context: &Context) -> Option<Found> {
        let found = match &self.asked {
            Some(asked) if asked.has_verified_peer() => None,
            Some(asked) => self.local.answer_at(context, |at| at != asked).await,
            None => self.local.answer(context).await,
        };
        let (other, who) = found?;
        let (name, at) = (self.local.owner.named(), other.client.endpoint());
        note(&format!(
            "the broker ({name}) answers at {at}: nobody is killed, and the release is asked for there (`--url {at}`)"
        ));
        Some(Found::Answers(other, who))
    }

    /// What is said of it where nobody wants to take over.
    pub(super) fn failure(self) -> Failure {
        if self.has_store() == Some(false) {
            return self.no_owner();
        }
        let Self {
            local, what, state, ..
        } = self;
        let owner = local.owner;
        let message = format!("the broker ({}) lives, but {what}: {state}", owner.named());
        let resumed = owner.resumed_by();
        let resumed = resumed.map_or(String::new(), |how| {
            format!("; `{how}` lets it go on instead")
        });
        Failure::new(exit::HUNG, message).hint(format!(
            "say it again with `--takeover`: that kills this broker, which loses no lease, and releases on its store{resumed}"
        ))
    }

    /// Kills it, and answers the state directory that nobody has then. A process that does not have the store is left
    /// alone: whoever is named by a file is killed only if the kernel says the same.
    ///
    /// # Errors
    /// It cannot be seen whether it has the store, it is another user's, or does not die.
    pub(super) fn kill(self) -> Result<PathBuf, Failure> {
        let name = self.local.owner.named();
        match self.has_store() {
            Some(true) => {}
            Some(false) => {
                note(&format!(
                    "{name} does not have the store, whatever `{OWNER_FILE}` says: nobody is killed"
                ));
                return Ok(self.local.dir);
            }
            None => {
                let state = self.state;
                return Err(Failure::refused(format!(
                    "it cannot be seen whether {name} is the broker: nobody is killed; {state}"
                ))
                .hint(AS_ITS_USER));
            }
        }
        let Self {
            local, what, state, ..
        } = self;
        note(&format!("killing the broker ({name}), which {what}"));
        local.process.kill().map_err(|error| {
            Failure::refused(format!(
                "the broker ({name}) cannot be killed: {error}; {state}"
            ))
            .hint(AS_ITS_USER)
        })?;
        if local.ends_within(Duration::from_secs(DEATH_SECS_MAX)) {
            return Ok(local.dir);
        }
        let name = local.owner.named();
        Err(Failure::new(
            exit::HUNG,
            format!("the broker ({name}) was killed and is still there after {DEATH_SECS_MAX} s; nothing was released on its store"),
        )
        .hint("a process that hangs in a driver or a disk ends when that answers, or when the host is booted anew"))
    }

    /// Whether it is proven to be the process that has the store.
    fn has_store(&self) -> Option<bool> {
        let Local { owner, dir, .. } = &self.local;
        owner.has_locked(&dir.join(STORE_FILE))
    }

    /// A broker before it has the store, or when it is about to end; or no broker.
    fn no_owner(self) -> Failure {
        let Self { local, what, .. } = self;
        let (name, file) = (local.owner.named(), local.dir.join(OWNER_FILE));
        Failure::new(
            exit::HUNG,
            format!(
                "{name} is named by `{}`, {what}, and does not have the store: nothing was changed",
                file.display()
            ),
        )
        .hint("a broker that starts or ends is done with that soon: say it again; with `--takeover` nobody is killed, and the release goes on on the store if nobody has it")
    }
}

/// Whether the process that the state directory `dir` names is proven not to have the store.
pub(super) fn is_misnamed(dir: &Path) -> bool {
    let named = Owner::alive(dir).ok().flatten();
    named.is_some_and(|(owner, _)| owner.has_locked(&dir.join(STORE_FILE)) == Some(false))
}

fn dir(args: &ReleaseArgs) -> PathBuf {
    args.state_dir.clone().unwrap_or_else(default_state_dir)
}

fn unanswered(endpoint: &Endpoint) -> String {
    format!("somebody listens at {endpoint} and does not answer within {ANSWER_SECS_MAX} s")
}

fn unseen(dir: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!(
        "who has `{}` cannot be seen: {error}",
        dir.display()
    ))
    .hint(AS_ITS_USER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::BrokerArgs;
    use crate::cli::emergency::tests::args;

    fn stated(url: &str) -> Context {
        Context::new(&BrokerArgs {
            url: Some(url.to_owned()),
            ..BrokerArgs::default()
        })
        .expect(url)
    }

    #[tokio::test]
    async fn who_says_where_the_broker_is_is_not_helped_with_another() {
        let stated = stated("unix:/nowhere/at/all.sock");
        let found = find(&stated, &args("g release --emergency --all --yes")).await;
        let Err(failure) = found else {
            panic!("it fell back on the usual state directory");
        };
        assert_eq!(failure.code, exit::NO_BROKER);

        let dir = tempfile::tempdir().expect("a directory can be made");
        let dir = dir.path().display();
        let named = args(&format!(
            "g release --emergency --all --yes --state-dir {dir}"
        ));
        assert!(matches!(find(&stated, &named).await, Ok(Found::Gone(_))));
    }
}
