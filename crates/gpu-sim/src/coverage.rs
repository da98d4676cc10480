//! What a run reached, so that a generator that goes stale is noticed.

use std::collections::BTreeMap;
use std::fmt;

use gpu_lease::{
    Answer, Command, Denial, Effect, EventKind, Fate, LeaseError, Outcome, Phase, ReclaimStage,
    Refusal, Signal, Why,
};

/// How often each thing was seen, by a word for it.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    /// Whether `word` was ever seen.
    pub fn has(&self, word: &str) -> bool {
        self.0.contains_key(word)
    }

    /// One more of `word`.
    pub fn saw(&mut self, word: impl Into<String>) {
        *self.0.entry(word.into()).or_default() += 1;
    }

    /// Adds what another run reached.
    pub fn merge(&mut self, other: &Coverage) {
        for (word, count) in &other.0 {
            *self.0.entry(word.clone()).or_default() += count;
        }
    }

    /// What a command did.
    pub(crate) fn note(&mut self, command: &Command, outcome: &Outcome) {
        self.saw(format!("{} -> {}", name(command), answer(&outcome.answer)));
        for lease in &outcome.changes.leases {
            if let Phase::Reclaiming(_, reclaim) = &lease.phase {
                self.saw(format!("stage {}", stage(&reclaim.stage)));
            }
            if let Phase::Ended(ending) = &lease.phase {
                self.saw(format!("end {}", ending.reason));
            }
        }
        for event in &outcome.events {
            self.saw(format!("event {}", EventKind::as_str(event.kind)));
        }
        for effect in &outcome.effects {
            self.saw(match effect {
                Effect::Read => "effect read",
                Effect::Watch { .. } => "effect watch",
                Effect::Signal {
                    signal: Signal::Kill,
                    ..
                } => "effect kill",
                Effect::Signal { .. } => "effect term",
            });
        }
        if let Answer::Policy(Ok(Some(switched))) = &outcome.answer {
            for fate in &switched.plan.held {
                let word = fate_word(fate.fate);
                self.saw(format!("fate {word}"));
                self.saw(format!("fate {word} by {}", sort(&fate.because)));
                if fate.unenforceable {
                    self.saw("fate unenforceable");
                }
            }
            for (_, refusal) in &switched.plan.denied {
                self.saw("fate denied");
                self.saw(format!("fate denied by {}", sort(refusal)));
            }
        }
    }

    pub(crate) fn note_waiting(&mut self, why: &Why) {
        self.saw(format!("waits {}", why.code()));
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, count) in &self.0 {
            writeln!(f, "{count:>9}  {word}")?;
        }
        Ok(())
    }
}

/// The sort of rule that decides a fate.
fn sort(because: &Refusal) -> &'static str {
    let sorts = [
        "quota of tenant",
        "reserve of",
        "device",
        "tenant",
        "class",
        "capacity",
    ];
    let found = sorts
        .into_iter()
        .find(|sort| because.rule.starts_with(sort));
    match because.rule.as_str() {
        "" => "nothing",
        _ => found.unwrap_or("rule"),
    }
}

/// A word for each command.
pub(crate) fn name(command: &Command) -> &'static str {
    match command {
        Command::Abandon { .. } => "abandon",
        Command::Acquire { .. } => "acquire",
        Command::ClearQuarantine { .. } => "clear_quarantine",
        Command::Cordon { .. } => "cordon",
        Command::DrainDevice { .. } => "drain_device",
        Command::DrainLease { .. } => "drain_lease",
        Command::Emergency(_) => "emergency",
        Command::Explain { .. } => "explain",
        Command::Expire => "expire",
        Command::Grace { .. } => "grace",
        Command::HostRebooted => "host_rebooted",
        Command::Inventory(_) => "inventory",
        Command::Note(_) => "note",
        Command::ProcessGone { .. } => "process_gone",
        Command::Ready { .. } => "ready",
        Command::Release { .. } => "release",
        Command::Renew { .. } => "renew",
        Command::Revoke { .. } => "revoke",
        Command::SetPolicy(_) => "set_policy",
        Command::SignalRefused { .. } => "signal_refused",
        Command::Telemetry(_) => "telemetry",
        Command::Uncordon { .. } => "uncordon",
    }
}

fn answer(answer: &Answer) -> &'static str {
    match answer {
        Answer::Acquire(Err(denial)) => denied(denial),
        Answer::Acquire(Ok(lease)) | Answer::Lease(Ok(lease)) => phase(&lease.phase),
        Answer::Lease(Err(LeaseError::Ended(_))) => "has ended",
        Answer::Lease(Err(LeaseError::NotFound)) => "not found",
        Answer::Lease(Err(LeaseError::NotGranted)) => "not granted",
        Answer::Device(Ok(())) => "done",
        Answer::Device(Err(_)) => "unknown device",
        Answer::Emergency(ended) if ended.is_empty() => "nothing to end",
        Answer::Emergency(_) => "some ended",
        Answer::Nothing => "nothing",
        Answer::Explain(explanation) => match &explanation.outcome {
            Ok(_) => "would be granted",
            Err(denial) => denied(denial),
        },
        Answer::Policy(Ok(None)) => "the same policy",
        Answer::Policy(Ok(Some(_))) => "switched",
        Answer::Policy(Err(_)) => "unexpected",
    }
}

fn denied(denial: &Denial) -> &'static str {
    match denial {
        Denial::ByPolicy { .. } => "denied by policy",
        Denial::DoesNotFit(_) => "does not fit",
        Denial::IdempotencyMismatch => "idempotency mismatch",
        Denial::NeverFits(_) => "never fits",
        Denial::QueueFull { .. } => "queue full",
        Denial::Recovering => "recovering",
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Waiting(_) => "waiting",
        Phase::Held(grant) if grant.drains.is_empty() => "active",
        Phase::Held(_) => "draining",
        Phase::Reclaiming(..) => "reclaiming",
        Phase::Ended(_) => "ended",
    }
}

fn stage(stage: &ReclaimStage) -> &'static str {
    match stage {
        ReclaimStage::Verifying => "verifying",
        ReclaimStage::Stuck(_) => "stuck",
        ReclaimStage::Quarantined => "quarantined",
    }
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Drain(_) => "drain",
        Fate::Force => "force",
        Fate::Keep => "keep",
        Fate::Shorten(_) => "shorten",
        Fate::Withdraw => "withdraw",
    }
}
