//! Whether a broker answers, and what to do about one that lives and does not.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_broker::ProcessHandle;
use gpu_client::{ClientError, Endpoint};
use tokio::time::{sleep, timeout};

use crate::cli::args::ReleaseArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::note;
use crate::owner::Owner;
use crate::serve::config::default_state_dir;

/// A broker says who it is within so long, whatever else it has to do.
const ANSWER_SECS_MAX: u64 = 3;
/// One that starts is asked again so often.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A killed process that is still there hangs in the kernel.
const DEATH_SECS_MAX: u64 = 10;

/// What was found where the broker should be.
pub(super) enum Found {
    /// It answers, here.
    Answers(Context),
    /// None lives; this is its state directory.
    Gone(PathBuf),
    /// One lives and does not answer.
    Silent(Silent),
}

/// A broker of this host that lives and does not answer.
pub(super) struct Silent {
    owner: Owner,
    process: ProcessHandle,
    dir: PathBuf,
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

/// Asks the broker at the usual or given address, else the one that its state directory names.
///
/// # Errors
/// None is there that could be helped from here.
pub(super) async fn find(context: &Context, args: &ReleaseArgs) -> Result<Found, Failure> {
    let endpoint = context.client.endpoint();
    let silence = match answer(context).await {
        Ok(()) => return Ok(Found::Answers(context.clone())),
        Err(silence) => silence,
    };
    if !is_local(endpoint) {
        return Err(match silence {
            Silence::Nobody(error) => error.into(),
            Silence::Nothing => Failure::new(exit::NO_BROKER, unanswered(endpoint))
                .hint("it is on another host: go there to see what it does"),
        });
    }
    let dir = dir(args);
    match (
        Owner::alive(&dir).map_err(|error| unseen(&dir, &error))?,
        silence,
    ) {
        (Some((owner, process)), _) => elsewhere(context, owner, process, dir).await,
        (None, Silence::Nobody(_)) => Ok(Found::Gone(dir)),
        (None, Silence::Nothing) => Err(Failure::new(
            exit::HUNG,
            format!("{}; nothing was changed", unanswered(endpoint)),
        )
        .hint(format!(
            "it is not the broker of `{}`: say where its state is with `--state-dir DIR`",
            dir.display()
        ))),
    }
}

/// A broker that has the directory may listen elsewhere, or be on its way up.
async fn elsewhere(
    context: &Context,
    owner: Owner,
    process: ProcessHandle,
    dir: PathBuf,
) -> Result<Found, Failure> {
    let asked = context.client.endpoint();
    let parse = |at: &String| at.parse::<Endpoint>().ok();
    let others = owner.listen.iter().filter_map(parse);
    let others: Vec<Context> = others.filter_map(|at| context.at(at)).collect();
    let give_up = Instant::now() + Duration::from_secs(ANSWER_SECS_MAX);
    while Instant::now() < give_up {
        for other in &others {
            if answer(other).await.is_ok() {
                let at = other.client.endpoint();
                if at != asked {
                    note(&format!(
                        "no broker answers at {asked}; that of `{}` does, at {at}",
                        dir.display()
                    ));
                }
                return Ok(Found::Answers(other.clone()));
            }
        }
        if process.ends_within(Duration::ZERO).unwrap_or(false) {
            return Ok(Found::Gone(dir));
        }
        sleep(ASK_AGAIN).await;
    }
    Ok(Found::Silent(Silent {
        what: format!("does not answer within {ANSWER_SECS_MAX} s"),
        state: "nothing was changed",
        owner,
        process,
        dir,
    }))
}

async fn answer(context: &Context) -> Result<(), Silence> {
    let patience = Duration::from_secs(ANSWER_SECS_MAX);
    match timeout(patience, context.client.status()).await {
        Ok(Ok(_) | Err(ClientError::Problem(_))) => Ok(()),
        Ok(Err(error @ (ClientError::Unreachable { .. } | ClientError::NotABroker { .. }))) => {
            Err(Silence::Nobody(error))
        }
        Ok(Err(ClientError::Lost { .. } | ClientError::TimedOut { .. })) | Err(_) => {
            Err(Silence::Nothing)
        }
    }
}

impl Silent {
    /// The broker answered, and then did not do the release.
    ///
    /// # Errors
    /// It is not one of this host.
    pub(super) fn in_release(
        context: &Context,
        args: &ReleaseArgs,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let (endpoint, dir) = (context.client.endpoint(), dir(args));
        let what = format!(
            "took the release and did not answer it within {} s",
            patience.as_secs()
        );
        let owner = match is_local(endpoint) {
            true => Owner::alive(&dir).map_err(|error| unseen(&dir, &error))?,
            false => None,
        };
        let Some((owner, process)) = owner else {
            let message = format!("the broker at {endpoint} {what}: it may still do it");
            return Err(Failure::new(exit::HUNG, message).hint(
                "on its host, `--takeover` kills it and releases on its store; `--state-dir DIR` says where that is",
            ));
        };
        Ok(Self {
            owner,
            process,
            dir,
            what,
            state: "it may still do it",
        })
    }

    /// What is said of it where nobody wants to take over.
    pub(super) fn failure(self) -> Failure {
        let Self {
            owner, what, state, ..
        } = self;
        let message = format!("the broker ({}) lives, but {what}: {state}", owner.named());
        let resumed = owner.resumed_by();
        let resumed = resumed.map_or(String::new(), |how| {
            format!("; `{how}` lets it go on instead")
        });
        Failure::new(exit::HUNG, message).hint(format!(
            "say it again with `--takeover`: that kills this broker, which loses no lease, and releases on its store{resumed}"
        ))
    }

    /// Kills it, and answers the state directory that nobody has then.
    ///
    /// # Errors
    /// It is another user's, or does not die.
    pub(super) fn kill(self) -> Result<PathBuf, Failure> {
        let (name, what) = (self.owner.named(), &self.what);
        note(&format!("killing the broker ({name}), which {what}"));
        self.process.kill().map_err(|error| {
            Failure::refused(format!(
                "the broker ({name}) cannot be killed: {error}; {}",
                self.state
            ))
            .hint("do this as root, or as the user that runs the broker")
        })?;
        let gone = self
            .process
            .ends_within(Duration::from_secs(DEATH_SECS_MAX));
        match gone {
            Ok(true) => Ok(self.dir),
            Ok(false) | Err(_) => Err(Failure::new(
                exit::HUNG,
                format!(
                    "the broker ({}) was killed and is still there after {DEATH_SECS_MAX} s; {}",
                    self.owner.named(),
                    self.state
                ),
            )
            .hint("a process that hangs in a driver or a disk ends when that answers, or when the host is booted anew")),
        }
    }
}

fn dir(args: &ReleaseArgs) -> PathBuf {
    args.state_dir.clone().unwrap_or_else(default_state_dir)
}

fn unanswered(endpoint: &Endpoint) -> String {
    format!("somebody listens at {endpoint} and does not answer within {ANSWER_SECS_MAX} s")
}

fn unseen(dir: &std::path::Path, error: &io::Error) -> Failure {
    Failure::refused(format!(
        "who has `{}` cannot be seen: {error}",
        dir.display()
    ))
    .hint("do this as root, or as the user that runs the broker")
}

/// Whether the broker there could be one of this host.
fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Unix(_) => true,
        Endpoint::Tcp { host, .. } => {
            let address: Option<std::net::IpAddr> = host.parse().ok();
            host == "localhost" || address.is_some_and(|address| address.is_loopback())
        }
    }
}
