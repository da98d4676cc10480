//! Going on with a broker that does not answer for a while, where somebody waits for a lease anyhow; and telling
//! why it takes so long, once for every reason.

use std::time::Duration;

use gpu_api::{ErrorCode, Lease, Span};
use gpu_client::ClientError;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::grant::place;
use crate::cli::output::note;
use crate::cli::show;

const RETRY: Duration = Duration::from_millis(500);
/// A broker that is busy says a little late that the wait is over, and knows better why.
const LATE: Duration = Duration::from_secs(2);

/// How long somebody waits for a lease, and what was said meanwhile.
#[derive(Debug)]
pub(crate) struct Patience {
    wait: Duration,
    began: Instant,
    give_up: Instant,
    /// Somebody was there: whoever is gone by now may come back.
    met: bool,
    said: Option<String>,
    /// What was said last was this reason, before holders were named in it.
    heard: Option<String>,
}

impl Patience {
    /// Who does not want to wait has none.
    pub(crate) fn new(wait: Span) -> Self {
        let (wait, began) = (wait.as_duration(), Instant::now());
        Self {
            wait,
            began,
            give_up: began + wait,
            met: false,
            said: None,
            heard: None,
        }
    }

    /// What is left of the wait, where that is known to be less than the whole; `None` of no wait at all.
    pub(crate) fn left(&self) -> Option<Span> {
        let left = match self.said {
            None => self.wait,
            Some(_) => self.give_up.saturating_duration_since(Instant::now()),
        };
        let at_least = Span::from_ms(1);
        (self.wait > Duration::ZERO).then(|| Span::from_ms(left.as_millis() as u64).max(at_least))
    }

    /// When a wait is over about which the broker says nothing.
    pub(crate) fn end(&self) -> Instant {
        self.give_up + LATE
    }

    /// Waits for a broker that is there and does not answer.
    ///
    /// # Errors
    /// None is there, or it does not answer for as long as somebody waits.
    pub(crate) async fn reach(&mut self, context: &Context) -> Result<(), Failure> {
        self.insist(context, async || match context.client.status().await {
            Err(error) if !matches!(error, ClientError::Problem(_)) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        })
        .await
    }

    /// Asks, and again while the broker is away or grants nothing and the wait is not over.
    ///
    /// # Errors
    /// It says no, or the wait is over.
    pub(crate) async fn insist<T>(
        &mut self,
        context: &Context,
        mut ask: impl AsyncFnMut() -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        loop {
            let asked = match self.wait {
                Duration::ZERO => Ok(ask().await),
                _ => timeout_at(self.end(), ask()).await,
            };
            let error = match asked {
                Ok(Ok(done)) => {
                    self.met = true;
                    return Ok(done);
                }
                Ok(Err(error)) => error,
                Err(_) => ClientError::TimedOut {
                    endpoint: context.client.endpoint().clone(),
                    after: self.began.elapsed(),
                },
            };
            if !self.may_change(&error) {
                return Err(error.into());
            }
            if Instant::now() >= self.give_up {
                return Err(Failure::from(error).of_wait());
            }
            self.say_away(&error);
            sleep(RETRY).await;
        }
    }

    /// Says that the broker is away, or why it grants nothing.
    pub(crate) fn say_away(&mut self, error: &ClientError) {
        self.met = true;
        let why = match error.code() {
            Some(ErrorCode::Recovering) => "the broker has not seen its devices yet".to_owned(),
            Some(ErrorCode::SafeStart) => {
                format!("{error}; `gpu-manager status` says what to do")
            }
            Some(_) => error.to_string(),
            None => format!("{error}; trying again"),
        };
        self.say(format!("waiting: {why}"));
    }

    /// Says why `lease` waits.
    pub(crate) async fn tell(&mut self, context: &Context, lease: &Lease) {
        let Some(heard) = waiting_line(lease) else {
            return;
        };
        if self.heard.as_ref() == Some(&heard) {
            return;
        }
        let mut named = lease.clone();
        // An id says it too.
        let _ = show::name_mentioned(context, &mut named).await;
        self.say(waiting_line(&named).unwrap_or_default());
        self.heard = Some(heard);
    }

    /// What was said last, for the end of a message.
    pub(crate) fn last(&self) -> String {
        let said = self.said.as_ref();
        said.map_or(String::new(), |said| format!("; last it was {said}"))
    }

    fn say(&mut self, line: String) {
        self.heard = None;
        if self.said.as_ref() != Some(&line) {
            note(&line);
            self.said = Some(line);
        }
    }

    fn may_change(&self, error: &ClientError) -> bool {
        let somebody = self.met || !matches!(error, ClientError::Unreachable { .. });
        self.wait > Duration::ZERO && somebody && error.is_away()
    }
}

/// `waiting (next): needs 12 GiB`, if it waits.
fn waiting_line(lease: &Lease) -> Option<String> {
    let waiting = lease.waiting.as_ref()?;
    let place = place(waiting.position);
    Some(format!("waiting ({place}): {}", waiting.reason))
}
