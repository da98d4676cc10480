//! Why a request waits, in a line and at length.

use gpu_api::{Bytes, Lease, LeaseState, Queue, Span};
use jiff::Timestamp;

use crate::cli::grant::place;
use crate::cli::output::{Paint, Tone, ago, clean, clock, until};
use crate::cli::show::{age, end_reason, holdings, lease};
use crate::cli::table::{Align, Cell, Table};

/// A row for each waiter, in the order of service.
pub(crate) fn render_queue(queue: &Queue, now: Timestamp, paint: Paint) -> String {
    if queue.waiters.is_empty() {
        return "nobody waits\n".to_owned();
    }
    let mut table = Table::new(&[
        ("#", Align::Right),
        ("LEASE", Align::Left),
        ("HOLDER", Align::Left),
        ("CLASS", Align::Left),
        ("PRIORITY", Align::Right),
        ("WANTS", Align::Right),
        ("WAITED", Align::Right),
        ("WHY", Align::Left),
    ]);
    for waiter in &queue.waiters {
        table.row(row(waiter, now));
    }
    let more = queue.total.saturating_sub(queue.waiters.len() as u64);
    let more = if more == 0 {
        String::new()
    } else {
        format!("and {more} more\n")
    };
    format!("{}{more}", table.render(paint))
}

/// What became of a lease, at length.
pub(crate) fn explain(lease: &Lease, now: Timestamp, paint: Paint) -> String {
    let mut lines = vec![headline(lease, now, paint)];
    let mut line =
        |name: &str, text: String| lines.push(format!("  {name:<10} {}\n", clean(&text)));
    line(
        "asked",
        format!(
            "{} ago by {} ({})",
            ago(&lease.created_at, now),
            lease.holder.name,
            lease.holder.user
        ),
    );
    line(
        "wants",
        format!(
            "{}, class {}, priority {}",
            lease::wanted(lease),
            lease.class,
            lease.priority
        ),
    );
    if let Some(select) = &lease.wanted.select {
        line("only", select.clone());
    }
    if lease.state != LeaseState::Waiting && !lease.allocations.is_empty() {
        line("holds", holdings(lease));
    }
    if let Some(waiting) = &lease.waiting {
        line("because", waiting.reason.clone());
        for blocker in &waiting.blockers {
            line("blocked by", blocker_line(blocker, now));
        }
        if let Some(at) = &waiting.eligible_at {
            line("eligible", until(at, now));
        }
        if let Some(eta_ms) = waiting.eta_ms {
            line("expected", format!("in {}", Span::from_ms(eta_ms)));
        }
    }
    if let Some(drain) = &lease.drain {
        for cause in &drain.causes {
            let by = cause
                .by
                .as_ref()
                .map(|by| format!(" by {by}"))
                .unwrap_or_default();
            line(
                "drained",
                format!(
                    "{}{by}, by force {}",
                    cause.reason,
                    until(&cause.deadline_at, now)
                ),
            );
        }
    }
    if lease.is_granted() {
        line("heartbeat", heartbeat(lease, now));
    }
    if let Some(at) = &lease.hold_until {
        line("ends", until(at, now));
    }
    if let Some(reclaim) = &lease.reclaim {
        line(
            "not free",
            format!("{}, for {}", reclaim.reason, ago(&reclaim.since, now)),
        );
    }
    lines.concat()
}

fn row(waiter: &Lease, now: Timestamp) -> [Cell; 8] {
    let waiting = waiter.waiting.as_ref();
    let position = waiting.map(|waiting| waiting.position.to_string());
    let reason = waiting.map(|waiting| waiting.reason.clone());
    [
        position.unwrap_or_default().into(),
        waiter.id.as_str().into(),
        Cell::tone(&waiter.holder.name, Tone::Bold),
        waiter.class.as_str().into(),
        waiter.priority.to_string().into(),
        lease::wanted(waiter).into(),
        ago(&waiter.created_at, now).into(),
        reason.unwrap_or_default().into(),
    ]
}

fn headline(lease: &Lease, now: Timestamp, paint: Paint) -> String {
    let (text, tone) = match lease.state {
        LeaseState::Waiting => {
            let position = lease.waiting.as_ref().map_or(String::new(), |waiting| {
                format!(", {}", place(waiting.position))
            });
            (format!("waits{position}"), Tone::Warn)
        }
        LeaseState::Active if lease.unresponsive => (
            "is granted, but its heartbeats stopped".to_owned(),
            Tone::Warn,
        ),
        LeaseState::Active => (format!("is granted, for {}", age(lease, now)), Tone::Good),
        LeaseState::Draining => ("is granted, and is asked to stop".to_owned(), Tone::Warn),
        LeaseState::Reclaiming => (
            format!(
                "ended ({}), and its memory is not free yet",
                end_reason(lease.end_reason)
            ),
            Tone::Bad,
        ),
        LeaseState::Ended => {
            let when = lease
                .ended_at
                .as_ref()
                .map(|at| format!(" {} ago", ago(at, now)))
                .unwrap_or_default();
            (
                format!("ended{when}: {}", end_reason(lease.end_reason)),
                Tone::Dim,
            )
        }
    };
    format!("{} {}\n", clean(&lease.id), paint.tone(&clean(&text), tone))
}

/// `vllm-a (l-1) with 8 GiB on sim-0, until 13:00:00Z`
pub(crate) fn blocker_line(blocker: &gpu_api::Blocker, now: Timestamp) -> String {
    let lease = blocker
        .lease
        .as_ref()
        .map(|lease| format!(" ({lease})"))
        .unwrap_or_default();
    let size = blocker
        .memory
        .map(|memory| format!(" with {}", Bytes(memory)))
        .unwrap_or_default();
    let device = blocker
        .device
        .as_ref()
        .map(|device| format!(" on {device}"))
        .unwrap_or_default();
    let end = blocker
        .until
        .as_ref()
        .map(|at| format!(", until {}", clock(at, now)))
        .unwrap_or_default();
    format!("{}{lease}{size}{device}{end}", blocker.holder)
}

fn heartbeat(lease: &Lease, now: Timestamp) -> String {
    let ttl = Span::from_ms(lease.ttl_ms);
    match &lease.expires_at {
        Some(at) => format!("every {ttl} at the latest, due {}", until(at, now)),
        None => format!("every {ttl} at the latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn a_waiter_is_explained() {
        assert_eq!(
            explain(&example::waiting("l-2"), example::now(), Paint::off()),
            "l-2 waits, 2nd in the queue\n  \
               asked      10m ago by test (ann)\n  \
               wants      12 GiB, class standard, priority 0\n  \
               because    needs 12 GiB on one device\n  \
               blocked by vllm-a (l-1) with 8 GiB on sim-0, until 13:00:00Z\n  \
               expected   in 2m\n"
        );
    }

    #[test]
    fn the_queue_is_a_table() {
        let queue = Queue {
            waiters: vec![example::waiting("l-2")],
            total: 3,
        };
        assert_eq!(
            render_queue(&queue, example::now(), Paint::off()),
            "#  LEASE  HOLDER  CLASS     PRIORITY   WANTS  WAITED  WHY\n\
             2  l-2    test    standard         0  12 GiB     10m  needs 12 GiB on one device\n\
             and 2 more\n"
        );
        assert_eq!(
            render_queue(&Queue::default(), example::now(), Paint::off()),
            "nobody waits\n"
        );
    }
}
