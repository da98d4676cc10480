//! Leases as rows and as lines.

use gpu_api::{Allocation, Bytes, Drain, EndReason, Lease, LeaseState, ReclaimPhase, Span};
use jiff::Timestamp;

use crate::cli::output::{Tone, clean, until};
use crate::cli::show::age;
use crate::cli::table::{Align, Cell, Table};

/// A row for each lease.
pub(crate) fn lease_table(leases: &[Lease], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("LEASE", Align::Left),
        ("STATE", Align::Left),
        ("HOLDER", Align::Left),
        ("USER", Align::Left),
        ("CLASS", Align::Left),
        ("DEVICES", Align::Left),
        ("MEMORY", Align::Right),
        ("AGE", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for lease in leases {
        table.row(row(lease, now));
    }
    table
}

/// One lease in one line, with its line end.
pub(crate) fn lease_line(lease: &Lease, now: Timestamp) -> String {
    let note = note(lease, now);
    let note = if note.is_empty() {
        note
    } else {
        format!("; {note}")
    };
    let line = match lease.state {
        LeaseState::Waiting => format!("{} waits for {}{note}", lease.id, wanted(lease)),
        LeaseState::Active => format!("{} holds {}{note}", lease.id, holdings(lease)),
        LeaseState::Draining => format!("{} drains {}{note}", lease.id, holdings(lease)),
        LeaseState::Reclaiming => {
            format!("{} ended, its memory is being taken back{note}", lease.id)
        }
        LeaseState::Ended => format!("{} ended{note}", lease.id),
    };
    format!("{}\n", clean(&line))
}

/// `12 GiB on GPU 0 (sim-0)`
pub(crate) fn holdings(lease: &Lease) -> String {
    let held = lease.allocations.iter().map(|held| {
        let size = if held.exclusive {
            "all".to_owned()
        } else {
            Bytes(held.memory).to_string()
        };
        match is_known(held) {
            true => format!("{size} of GPU {} ({})", held.index, held.device),
            false => format!("{size} of {}", held.device),
        }
    });
    match lease.allocations.is_empty() {
        true => "nothing".to_owned(),
        false => held.collect::<Vec<_>>().join(", "),
    }
}

/// `2 x 12 GiB`, `1 whole device`
pub(crate) fn wanted(lease: &Lease) -> String {
    let wanted = &lease.wanted;
    match (wanted.memory, wanted.devices) {
        (Some(memory), 1) => Bytes(memory).to_string(),
        (Some(memory), devices) => format!("{devices} x {}", Bytes(memory)),
        (None, 1) => "1 whole device".to_owned(),
        (None, devices) => format!("{devices} whole devices"),
    }
}

/// `drained by ann: maintenance; ended by force in 30s`
pub(crate) fn drain_line(drain: &Drain) -> String {
    let Some(cause) = drain.first() else {
        return "drained".to_owned();
    };
    let by = cause
        .by
        .as_ref()
        .map(|by| format!(" by {by}"))
        .unwrap_or_default();
    let left = Span::from_ms(cause.remaining_ms);
    clean(&format!(
        "drained{by}: {}; ended by force in {left}",
        cause.reason
    ))
}

/// The end reason as people say it.
pub(crate) fn end_reason(reason: Option<EndReason>) -> &'static str {
    match reason {
        None => "ended",
        Some(EndReason::Cancelled) => "cancelled",
        Some(EndReason::Denied) => "denied by the policy",
        Some(EndReason::DeviceLost) => "its device is lost",
        Some(EndReason::Emergency) => "ended by an emergency release",
        Some(EndReason::Expired) => "expired without a heartbeat",
        Some(EndReason::HostRebooted) => "the host was started anew",
        Some(EndReason::MaxHold) => "held for the longest time allowed",
        Some(EndReason::Policy) => "no longer allowed by the policy",
        Some(EndReason::Preempted) => "preempted",
        Some(EndReason::ProcessGone) => "its process is gone",
        Some(EndReason::Released) => "released",
        Some(EndReason::Revoked) => "revoked",
        Some(EndReason::WaitTimeout) => "not granted in time",
    }
}

fn row(lease: &Lease, now: Timestamp) -> [Cell; 9] {
    let (state, tone) = state(lease);
    let devices: Vec<String> = lease
        .allocations
        .iter()
        .map(|held| match is_known(held) {
            true => held.index.to_string(),
            false => held.device.clone(),
        })
        .collect();
    let devices = match lease.state {
        LeaseState::Waiting => "-".to_owned(),
        _ => devices.join(","),
    };
    [
        lease.id.as_str().into(),
        Cell::tone(state, tone),
        Cell::tone(&lease.holder.name, Tone::Bold),
        lease.holder.user.as_str().into(),
        lease.class.as_str().into(),
        devices.into(),
        memory(lease).into(),
        age(lease, now).into(),
        note(lease, now).into(),
    ]
}

/// A broker that has not seen its devices, and a store, know of one no more than its id.
fn is_known(held: &Allocation) -> bool {
    !held.name.is_empty()
}

fn memory(lease: &Lease) -> String {
    let exclusive = lease.allocations.iter().any(|held| held.exclusive);
    match lease.allocations.as_slice() {
        [] => wanted(lease),
        _ if exclusive => "whole".to_owned(),
        [one] => Bytes(one.memory).to_string(),
        many => format!("{} x {}", many.len(), Bytes(many[0].memory)),
    }
}

fn state(lease: &Lease) -> (&'static str, Tone) {
    match (lease.state, &lease.reclaim) {
        (LeaseState::Waiting, _) => ("waiting", Tone::Warn),
        (LeaseState::Active, _) if lease.unresponsive => ("unresponsive", Tone::Warn),
        (LeaseState::Active, _) if lease.loading => ("loading", Tone::Good),
        (LeaseState::Active, _) => ("active", Tone::Good),
        (LeaseState::Draining, _) => ("draining", Tone::Warn),
        (LeaseState::Reclaiming, Some(reclaim)) => match reclaim.phase {
            ReclaimPhase::Quarantined => ("quarantined", Tone::Bad),
            ReclaimPhase::Stuck => ("stuck", Tone::Bad),
            ReclaimPhase::Verifying => ("verifying", Tone::Warn),
        },
        (LeaseState::Reclaiming, None) => ("reclaiming", Tone::Warn),
        (LeaseState::Ended, _) => ("ended", Tone::Dim),
    }
}

/// What a person should know beside the columns.
fn note(lease: &Lease, now: Timestamp) -> String {
    match lease.state {
        LeaseState::Waiting => lease
            .waiting
            .as_ref()
            .map(|waiting| waiting.reason.clone())
            .unwrap_or_default(),
        LeaseState::Active if lease.unresponsive => {
            "its process lives, its heartbeats stopped".to_owned()
        }
        LeaseState::Active => lease
            .hold_until
            .as_ref()
            .map(|at| format!("ends {}", until(at, now)))
            .unwrap_or_default(),
        LeaseState::Draining => lease.drain.as_ref().map(drain_line).unwrap_or_default(),
        LeaseState::Reclaiming => {
            let why = lease
                .reclaim
                .as_ref()
                .map(|reclaim| format!(": {}", reclaim.reason))
                .unwrap_or_default();
            format!("{}{why}", end_reason(lease.end_reason))
        }
        LeaseState::Ended => end_reason(lease.end_reason).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Paint;
    use crate::cli::show::example;

    #[test]
    fn leases_are_rows_and_lines() {
        let waiting = example::waiting("l-2");
        let text = lease_table(&[example::active("l-1"), waiting.clone()], example::now())
            .render(Paint::off());
        assert_eq!(
            text,
            "LEASE  STATE    HOLDER  USER  CLASS     DEVICES  MEMORY  AGE  NOTE\n\
             l-1    active   test    ann   standard  0        12 GiB   5m\n\
             l-2    waiting  test    ann   standard  -        12 GiB  10m  needs 12 GiB on one device\n"
        );
        assert_eq!(
            lease_line(&example::active("l-1"), example::now()),
            "l-1 holds 12 GiB of GPU 0 (sim-0)\n"
        );
        assert_eq!(
            lease_line(&waiting, example::now()),
            "l-2 waits for 12 GiB; needs 12 GiB on one device\n"
        );
    }
}
