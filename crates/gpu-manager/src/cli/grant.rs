//! From a wish to a granted lease, telling why it waits.

use std::time::Duration;

use gpu_api::{
    AcquireRequest, EndReason, ErrorCode, HolderKind, HolderRequest, Labels, Lease, Span, Text,
    select,
};
use gpu_client::{ClientError, Gone, Heartbeat, IdempotencyKey, Pulse};
use tokio::time::{Instant, sleep};

use crate::cli::args::WantArgs;
use crate::cli::context::Context;
use crate::cli::exit::{Failure, WAIT_OVER};
use crate::cli::output::note;
use crate::cli::show;
use crate::cli::signals::{self, Signals};
use crate::cli::target;

const RECOVERING_RETRY: Duration = Duration::from_millis(500);
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// The request that `want` describes, for a holder of this name and process.
pub(crate) async fn request(
    context: &Context,
    want: &WantArgs,
    holder: HolderRequest,
) -> Result<AcquireRequest, Failure> {
    let picked: Vec<String> = want
        .gpu
        .iter()
        .filter(|gpu| *gpu != "auto")
        .cloned()
        .collect();
    let ids = match picked.is_empty() {
        true => Vec::new(),
        false => target::device_ids(context, &picked).await?,
    };
    assemble(want, &ids, holder)
}

/// Who holds the lease: a process of this host, if the broker can tell whose it is, or else heartbeats alone.
/// Its name is the one that was asked for, else `otherwise`.
pub(crate) fn holder(
    context: &Context,
    want: &WantArgs,
    otherwise: Option<&str>,
    pid: Option<u32>,
) -> HolderRequest {
    // Over TCP the broker may be on another host, where the number is another process's.
    let pid = pid.filter(|_| context.client.endpoint().has_verified_peer());
    HolderRequest {
        name: want
            .name
            .clone()
            .or_else(|| otherwise.and_then(|name| name.parse().ok())),
        kind: pid.map_or(HolderKind::Remote, |_| HolderKind::Process),
        tenant: want.tenant.clone(),
        pid,
        supervised: false,
    }
}

/// A lease and what keeps it.
#[derive(Debug)]
pub(crate) struct Granted {
    /// As granted, secret included.
    pub(crate) lease: Lease,
    /// Renews it until it is dropped.
    pub(crate) heartbeat: Heartbeat,
}

/// Asks, and waits for `request.wait`. Whoever interrupts the wait gives the request back.
pub(crate) async fn obtain(
    context: &Context,
    request: &AcquireRequest,
    signals: &mut Signals,
) -> Result<Granted, Failure> {
    let lease = tokio::select! {
        lease = ask(context, request) => lease?,
        signal = signals.next() => return Err(interrupted(signal)),
    };
    let secret = lease.secret.clone();
    let id = lease.id.clone();
    let waited = tokio::select! {
        granted = wait(context, lease) => granted,
        signal = signals.next() => {
            give_back(context, &id, secret.as_deref()).await?;
            return Err(interrupted(signal));
        }
    };
    waited.map(|mut granted| {
        granted.lease.secret = secret;
        granted
    })
}

/// Releases a lease and leaves it at that if the broker is silent: what was held ends by itself.
pub(crate) async fn give_back(
    context: &Context,
    id: &str,
    secret: Option<&str>,
) -> Result<(), Failure> {
    match tokio::time::timeout(RELEASE_PATIENCE, context.client.release(id, secret)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.is_away() => {
            note(&format!(
                "the broker is away; it will find that {id} is over by itself"
            ));
            Ok(())
        }
        Ok(Err(error)) if matches!(error.code(), Some(ErrorCode::Ended | ErrorCode::NotFound)) => {
            Ok(())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            note(&format!(
                "the broker does not answer; it will find that {id} is over by itself"
            ));
            Ok(())
        }
    }
}

fn assemble(
    want: &WantArgs,
    ids: &[String],
    holder: HolderRequest,
) -> Result<AcquireRequest, Failure> {
    let too_long =
        |error: gpu_api::TextError| Failure::usage(format!("the selection is too long: {error}"));
    let select = match ids {
        [] => want.select.clone(),
        ids => Some(
            select::of_ids(ids)
                .parse::<Text<2048>>()
                .map_err(too_long)?,
        ),
    };
    let each_picked = || (ids.len().max(1) as u64).try_into().map_err(Failure::usage);
    Ok(AcquireRequest {
        holder,
        class: want.class.clone(),
        devices: want.gpus.map_or_else(each_picked, Ok)?,
        memory: want.gpu_memory,
        exclusive: want.exclusive,
        select,
        ttl: want.ttl,
        wait: want.wait_timeout,
        max_hold: want.max_hold,
        drain_grace: want.drain_grace,
        labels: labels(want)?,
        queue: want.wait_timeout.is_some_and(|wait| wait > Span::default()),
        ..AcquireRequest::default()
    })
}

fn labels(want: &WantArgs) -> Result<Labels, Failure> {
    let reason = want
        .reason
        .clone()
        .map(|reason| "reason".parse::<Text<64>>().map(|key| (key, reason)));
    let labels = reason
        .transpose()
        .map_err(|error| Failure::own(error.to_string()))?;
    labels
        .into_iter()
        .chain(want.label.iter().cloned())
        .collect::<std::collections::BTreeMap<_, _>>()
        .try_into()
        .map_err(Failure::usage)
}

/// Sends the request, again while the broker is on its way up and the wait is not over.
async fn ask(context: &Context, request: &AcquireRequest) -> Result<Lease, Failure> {
    let key = IdempotencyKey::random();
    let give_up = Instant::now() + request.wait.unwrap_or_default().as_duration();
    let mut told = false;
    loop {
        match context.client.acquire(request, &key).await {
            Ok(lease) => return Ok(lease),
            Err(error) if grants_nothing_yet(&error) && Instant::now() < give_up => {
                if !told {
                    note(&format!("waiting: {}", why_nothing_yet(&error)));
                    told = true;
                }
                sleep(RECOVERING_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn grants_nothing_yet(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::Recovering | ErrorCode::SafeStart)
    )
}

fn why_nothing_yet(error: &ClientError) -> String {
    match error.code() {
        Some(ErrorCode::SafeStart) => error.to_string(),
        _ => "the broker has not seen its devices yet".to_owned(),
    }
}

async fn wait(context: &Context, lease: Lease) -> Result<Granted, Failure> {
    let mut teller = Teller::default();
    let mut heartbeat = Heartbeat::start(context.client.clone(), lease.clone());
    let mut lease = lease;
    while !lease.is_granted() {
        teller.tell(context, &lease).await;
        match heartbeat.next().await {
            Some(Pulse::Lease(news)) => lease = *news,
            Some(Pulse::Away(error)) => teller.say(format!("waiting: {error}")),
            Some(Pulse::Gone(gone)) => return Err(over(gone, &teller)),
            None => return Err(over(Gone::Unknown, &teller)),
        }
    }
    Ok(Granted { lease, heartbeat })
}

/// Says why it waits, once for every reason.
#[derive(Debug, Default)]
struct Teller {
    said: Option<String>,
    /// What was said last was this reason, before holders were named in it.
    heard: Option<String>,
}

impl Teller {
    async fn tell(&mut self, context: &Context, lease: &Lease) {
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

    fn say(&mut self, line: String) {
        self.heard = None;
        if self.said.as_ref() != Some(&line) {
            note(&line);
            self.said = Some(line);
        }
    }
}

/// `waiting (next): needs 12 GiB`, if it waits.
fn waiting_line(lease: &Lease) -> Option<String> {
    let waiting = lease.waiting.as_ref()?;
    let place = place(waiting.position);
    Some(format!("waiting ({place}): {}", waiting.reason))
}

/// `next`, `2nd`, `3rd`, ... in the queue.
pub(crate) fn place(position: u32) -> String {
    match (position, position % 10, position % 100) {
        (0 | 1, _, _) => "next".to_owned(),
        (_, _, 11..=13) => format!("{position}th in the queue"),
        (_, 1, _) => format!("{position}st in the queue"),
        (_, 2, _) => format!("{position}nd in the queue"),
        (_, 3, _) => format!("{position}rd in the queue"),
        _ => format!("{position}th in the queue"),
    }
}

fn over(gone: Gone, teller: &Teller) -> Failure {
    let lease = match gone {
        Gone::Ended(lease) => lease,
        Gone::Unknown => {
            return Failure::new(WAIT_OVER, "the broker does not know this request any more");
        }
    };
    let last = teller
        .said
        .as_ref()
        .map(|said| format!("; last it was {said}"))
        .unwrap_or_default();
    match lease.end_reason {
        Some(EndReason::WaitTimeout) => {
            Failure::new(WAIT_OVER, format!("the wait is over without a grant{last}"))
        }
        Some(EndReason::Denied) => Failure::refused("the request was denied by the policy")
            .hint(format!("see `gpu-manager why {}`", lease.id)),
        reason => Failure::new(
            WAIT_OVER,
            format!(
                "the request ended while it waited: {}",
                crate::cli::show::end_reason(reason)
            ),
        ),
    }
}

fn interrupted(signal: rustix::process::Signal) -> Failure {
    Failure::new(
        signals::code_of(signal),
        "interrupted while waiting; the request is withdrawn",
    )
}

#[cfg(test)]
mod tests {
    use gpu_api::{Bytes, Demand};

    use crate::cli::args::BrokerArgs;

    use super::*;

    #[test]
    fn a_request_is_what_the_arguments_say() {
        let want = WantArgs {
            gpu_memory: Some(Bytes(1 << 30)),
            reason: Some("a try".parse().expect("short")),
            wait_timeout: Some(Span::from_secs(60)),
            ..WantArgs::default()
        };
        let context = Context::new(&BrokerArgs {
            url: Some("http://127.0.0.1:1".to_owned()),
            token: None,
        });
        let holder = holder(
            &context.expect("an address"),
            &want,
            Some("python"),
            Some(7),
        );
        assert_eq!(
            (holder.kind, holder.pid),
            (HolderKind::Remote, None),
            "nobody vouches for it over TCP"
        );
        let request =
            assemble(&want, &["a".to_owned(), "b".to_owned()], holder).expect("a sound request");
        assert_eq!(
            request.devices.get(),
            2,
            "one for each device that is named"
        );
        assert_eq!(request.select.as_deref(), Some("device.id in ['a', 'b']"));
        assert!(matches!(request.demand(), Demand::Memory(_)));
        assert!(request.queue, "who waits keeps its place");
        assert_eq!(request.holder.name.as_deref(), Some("python"));
        assert_eq!(
            request.labels.iter().collect::<Vec<_>>(),
            [("reason", "a try")]
        );

        let request =
            assemble(&WantArgs::default(), &[], HolderRequest::default()).expect("a sound request");
        assert_eq!((request.devices.get(), request.queue), (1, false));
    }

    #[test]
    fn places_are_counted_as_people_do() {
        let places: Vec<String> = [1, 2, 3, 4, 11, 21, 112].into_iter().map(place).collect();
        let words: Vec<&str> = places
            .iter()
            .map(|place| place.split(' ').next().expect("a word"))
            .collect();
        assert_eq!(
            words,
            ["next", "2nd", "3rd", "4th", "11th", "21st", "112th"]
        );
    }
}
