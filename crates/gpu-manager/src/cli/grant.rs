//! From a wish to a granted lease, telling why it waits.

use std::time::Duration;

use gpu_api::{
    AcquireRequest, EndReason, ErrorCode, HolderKind, HolderRequest, Labels, Lease, Span, Text,
    select,
};
use gpu_client::{ClientError, Gone, Heartbeat, IdempotencyKey, Pulse};
use tokio::time::sleep_until;

use crate::cli::args::WantArgs;
use crate::cli::context::Context;
use crate::cli::exit::{Failure, WAIT_OVER};
use crate::cli::output::note;
use crate::cli::patience::Patience;
use crate::cli::signals::{self, Signals};
use crate::cli::target;

const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// The request that `want` describes, for a holder of this name and process.
pub(crate) async fn request(
    context: &Context,
    want: &WantArgs,
    holder: HolderRequest,
    patience: &mut Patience,
) -> Result<AcquireRequest, Failure> {
    let picked: Vec<String> = want
        .gpu
        .iter()
        .filter(|gpu| *gpu != "auto")
        .cloned()
        .collect();
    let ids = match picked.is_empty() {
        true => Vec::new(),
        false => {
            let known = async || target::devices(context).await;
            let devices = patience.insist(context, known).await?;
            let picked = picked.iter();
            picked
                .map(|text| target::resolve(&devices, text))
                .collect::<Result<_, _>>()?
        }
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

/// Asks, and waits as long as `patience` lasts. Whoever interrupts the wait gives the request back.
pub(crate) async fn obtain(
    context: &Context,
    request: &AcquireRequest,
    signals: &mut Signals,
    patience: &mut Patience,
) -> Result<Granted, Failure> {
    let lease = tokio::select! {
        lease = ask(context, request, patience) => lease?,
        signal = signals.next() => return Err(unheard(signal)),
    };
    let secret = lease.secret.clone();
    let id = lease.id.clone();
    let waited = tokio::select! {
        granted = wait(context, lease, patience) => granted,
        signal = signals.next() => {
            let told = give_back(context, &id, secret.as_deref()).await?;
            return Err(interrupted(signal, told));
        }
    };
    waited.map(|mut granted| {
        granted.lease.secret = secret;
        granted
    })
}

/// Releases a lease and leaves it at that if the broker is silent: what was held ends by itself. Answers whether the
/// broker was told.
pub(crate) async fn give_back(
    context: &Context,
    id: &str,
    secret: Option<&str>,
) -> Result<bool, Failure> {
    match tokio::time::timeout(RELEASE_PATIENCE, context.client.release(id, secret)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if matches!(error.code(), Some(ErrorCode::Ended | ErrorCode::NotFound)) => {
            Ok(true)
        }
        Ok(Err(error)) if !error.is_away() => Err(error.into()),
        silent => {
            let why = match silent {
                Ok(Err(ClientError::Unreachable { .. } | ClientError::Lost { .. })) => "is away",
                _ => "does not answer",
            };
            note(&format!(
                "the broker {why}; it will find that {id} is over by itself"
            ));
            Ok(false)
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

async fn ask(
    context: &Context,
    request: &AcquireRequest,
    patience: &mut Patience,
) -> Result<Lease, Failure> {
    let key = IdempotencyKey::random();
    patience
        .insist(context, async || {
            context.client.acquire(request, &key).await
        })
        .await
}

/// The broker knows best when the wait is over; while it is away, the clock of this process does.
async fn wait(
    context: &Context,
    mut lease: Lease,
    patience: &mut Patience,
) -> Result<Granted, Failure> {
    let mut heartbeat = Heartbeat::start(context.client.clone(), lease.clone());
    let mut away = None;
    patience.tell(context, &lease).await;
    while !lease.is_granted() {
        let pulse = tokio::select! {
            pulse = heartbeat.next() => pulse,
            () = sleep_until(patience.end()), if away.is_some() => break,
        };
        match pulse {
            Some(Pulse::Lease(news)) => {
                (lease, away) = (*news, None);
                patience.tell(context, &lease).await;
            }
            Some(Pulse::Away(error)) => {
                patience.say_away(&error);
                away = Some(error);
            }
            Some(Pulse::Gone(gone)) => return Err(over(gone, patience)),
            None => return Err(over(Gone::Unknown, patience)),
        }
    }
    match away {
        Some(error) => Err(Failure::from(error).of_wait()),
        None => Ok(Granted { lease, heartbeat }),
    }
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

fn over(gone: Gone, patience: &Patience) -> Failure {
    let lease = match gone {
        Gone::Ended(lease) => lease,
        Gone::Unknown => {
            return Failure::new(WAIT_OVER, "the broker does not know this request any more");
        }
    };
    let last = patience.last();
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

/// The broker has not said yet whether it has the request.
fn unheard(signal: rustix::process::Signal) -> Failure {
    Failure::new(
        signals::code_of(signal),
        "interrupted before the broker answered; a request that it still finds is over by itself",
    )
}

fn interrupted(signal: rustix::process::Signal, told: bool) -> Failure {
    let so = match told {
        true => "; the request is withdrawn",
        false => "",
    };
    let message = format!("interrupted while waiting{so}");
    Failure::new(signals::code_of(signal), message)
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
