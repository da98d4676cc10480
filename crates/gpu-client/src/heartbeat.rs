//! Keeping a lease: renewals at a third of its ttl, and news of it as soon as there are any.

use std::time::Duration;

use gpu_api::{ErrorCode, Lease, LeaseState, Span};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::Client;
use crate::error::ClientError;

/// Why a waiter waits changes without a new revision, so it is looked at this often.
const WAITING_LOOK_MS: u64 = 2000;
const RETRY_MS_MIN: u64 = 250;
const RETRY_MS_MAX: u64 = 5000;
const PULSES_MAX: usize = 16;

/// What a heartbeat finds.
#[derive(Debug)]
pub enum Pulse {
    /// The broker does not answer; said once, and the heartbeat goes on trying.
    Away(ClientError),
    /// The lease is over; the last pulse.
    Gone(Gone),
    /// The lease as it is: after each change, and when the broker is back.
    Lease(Box<Lease>),
}

/// How a lease was found to be over.
#[derive(Debug)]
pub enum Gone {
    /// It ended; the lease says why.
    Ended(Box<Lease>),
    /// The broker does not know it: its state was lost or is another's.
    Unknown,
}

/// Renews one lease, waiting or granted, until it is dropped or the lease is over.
#[derive(Debug)]
pub struct Heartbeat {
    pulses: mpsc::Receiver<Pulse>,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Begins with the lease as acquire answered it, secret included.
    pub fn start(client: Client, lease: Lease) -> Self {
        let (sender, pulses) = mpsc::channel(PULSES_MAX);
        let task = tokio::spawn(Beat::new(client, lease, sender).run());
        Self { pulses, task }
    }

    /// The next pulse; `None` after [`Pulse::Gone`].
    pub async fn next(&mut self) -> Option<Pulse> {
        self.pulses.recv().await
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Beat {
    client: Client,
    secret: Option<String>,
    lease: Lease,
    away: bool,
    retry_ms: u64,
    renew_at: Instant,
    pulses: mpsc::Sender<Pulse>,
}

/// Nothing more is to be done: the lease is over or nobody listens.
struct Stop;

impl Beat {
    fn new(client: Client, lease: Lease, pulses: mpsc::Sender<Pulse>) -> Self {
        let secret = lease.secret.clone();
        Self {
            client,
            secret,
            lease,
            away: false,
            retry_ms: RETRY_MS_MIN,
            renew_at: Instant::now(),
            pulses,
        }
    }

    async fn run(mut self) {
        while self.turn().await.is_ok() {}
    }

    /// One renewal, if it is due, or one look.
    async fn turn(&mut self) -> Result<(), Stop> {
        let due = Instant::now() >= self.renew_at;
        let answer = match due {
            true => {
                self.client
                    .renew(&self.lease.id, self.secret.as_deref())
                    .await
            }
            false => self.look().await,
        };
        match answer {
            Ok(lease) => {
                if due {
                    self.renew_at = Instant::now() + self.interval();
                }
                self.found(lease).await
            }
            Err(error) => self.failed(error).await,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis((self.lease.ttl_ms / 3).max(100))
    }

    /// The lease when it changes, and before the next renewal is due.
    async fn look(&self) -> Result<Lease, ClientError> {
        let started = Instant::now();
        let until_renewal = self.renew_at.saturating_duration_since(started).as_millis() as u64;
        let wait_ms = match self.lease.state {
            LeaseState::Waiting => until_renewal.min(WAITING_LOOK_MS),
            _ => until_renewal,
        };
        let wait = Span::from_ms(wait_ms);
        let found = self
            .client
            .lease_after(&self.lease.id, self.lease.revision, wait)
            .await;
        let lease = match found {
            // A broker with no room for one more who looks still takes renewals.
            Err(error) if error.code() == Some(ErrorCode::Overloaded) => self.lease.clone(),
            found => found?,
        };
        if lease.revision <= self.lease.revision {
            // Whatever made the broker answer early, it is not asked again at once.
            sleep_until(started + Duration::from_millis(wait_ms)).await;
        }
        Ok(lease)
    }

    async fn found(&mut self, lease: Lease) -> Result<(), Stop> {
        self.retry_ms = RETRY_MS_MIN;
        if lease.is_over() {
            return self.end(Gone::Ended(Box::new(lease))).await;
        }
        let news = self.away || differs(&self.lease, &lease);
        self.away = false;
        self.lease = lease;
        match news {
            true => self.say(Pulse::Lease(Box::new(self.lease.clone()))).await,
            false => Ok(()),
        }
    }

    async fn failed(&mut self, error: ClientError) -> Result<(), Stop> {
        match error.code() {
            Some(ErrorCode::NotFound) => return self.end(Gone::Unknown).await,
            Some(ErrorCode::Ended) => {
                let gone = match self.client.lease(&self.lease.id).await {
                    Ok(lease) => Gone::Ended(Box::new(lease)),
                    Err(_) => Gone::Unknown,
                };
                return self.end(gone).await;
            }
            _ => {}
        }
        if !self.away {
            self.away = true;
            self.say(Pulse::Away(error)).await?;
        }
        sleep(Duration::from_millis(self.retry_ms)).await;
        self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
        // A broker that is back must hear of this holder before anything else.
        self.renew_at = Instant::now();
        Ok(())
    }

    async fn end(&self, gone: Gone) -> Result<(), Stop> {
        // Over for a listener and over for none: the result is the same.
        let _ = self.say(Pulse::Gone(gone)).await;
        Err(Stop)
    }

    async fn say(&self, pulse: Pulse) -> Result<(), Stop> {
        self.pulses.send(pulse).await.map_err(|_| Stop)
    }
}

/// Whether a holder should hear of the difference; a later expiry is none.
fn differs(old: &Lease, new: &Lease) -> bool {
    let reason = |lease: &Lease| lease.waiting.as_ref().map(|waiting| waiting.reason.clone());
    let causes = |lease: &Lease| {
        let causes = lease.drain.iter().flat_map(|drain| &drain.causes);
        causes
            .map(|cause| (cause.source, cause.deadline_at.clone()))
            .collect::<Vec<_>>()
    };
    old.state != new.state
        || old.fence != new.fence
        || reason(old) != reason(new)
        || causes(old) != causes(new)
}
