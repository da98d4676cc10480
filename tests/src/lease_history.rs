//! What clients were told of one device, taken apart into the steps of a [`LeaseTable`].
//!
//! A wait is two steps: it begins, and it ends in a grant or is given up, not before it is over. A lease runs out
//! in a step that nobody asks for; the history says when it may have come at the earliest, and when it was there for
//! sure. So is the death of a broker. Moments are nanoseconds of one clock of the test.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lease_table::{Amount, End, Grant, LeaseTable, Op, Phase, Ret};
use crate::linear::{Call, Calls};

/// After a start over leases nothing expires for so long.
const GRACE: Duration = Duration::from_secs(30);
/// The broker counts whole milliseconds.
const TICK: Duration = Duration::from_millis(1);
/// Who does what nobody asked for.
const NOBODY: usize = usize::MAX;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A lease, or again.
    Lease(Wanted),
    /// Anything else.
    Else(Op),
}

/// A lease that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The idempotency key.
    pub key: u32,
    /// How much.
    pub amount: Amount,
    /// How long it waits on its connection.
    pub wait: Option<Duration>,
    /// It may run out so long after a heartbeat.
    pub ttl: Duration,
}

/// One broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// It was not there before.
    pub begun: u64,
    /// When it was killed; `u64::MAX` if it was not.
    pub over: u64,
}

/// Everything that clients were told of one device.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What clients asked.
    pub calls: Vec<Call<Asked, Ret>>,
    /// The brokers, one after the other.
    pub lives: Vec<Life>,
}

impl From<Op> for Asked {
    fn from(op: Op) -> Self {
        Self::Else(op)
    }
}

impl From<Wanted> for Asked {
    fn from(wanted: Wanted) -> Self {
        Self::Lease(wanted)
    }
}

impl History {
    /// The steps that explain it, if there is an order that explains those. What was not answered and only looks is
    /// none.
    pub fn steps(&self) -> Calls<LeaseTable> {
        let grants = self.grants();
        let mut steps = Calls::<LeaseTable>::new();
        for call in &self.calls {
            match call.op {
                Asked::Lease(wanted) => self.ask(&mut steps, call, wanted, &grants),
                Asked::Else(op) => steps.extend(heard(call, op)),
            }
        }
        steps.extend(self.deaths());
        steps.extend(self.blurs(&grants));
        let expired = grants.iter().filter(|(_, grant)| ran_out(grant));
        steps.extend(expired.map(|(key, grant)| self.expiry(*key, grant.lease)));
        steps
    }

    /// By keys. Answers that were lost are known from those that came later.
    fn grants(&self) -> BTreeMap<u32, Grant> {
        let (mut by_fence, mut ends) = (BTreeMap::new(), BTreeMap::new());
        for call in &self.calls {
            let Some((_, Ret::Lease(seen))) = &call.answer else {
                continue;
            };
            if let Asked::Lease(Wanted { key, .. }) = call.op {
                by_fence.insert(seen.fence, (key, seen.lease));
            }
            if let Phase::Reclaiming(end) | Phase::Ended(end) = seen.phase {
                ends.insert(seen.lease, end);
            }
        }
        let before = std::iter::once(0).chain(by_fence.keys().copied());
        let grant = |((&fence, &(key, lease)), before)| {
            let grant = Grant {
                lease,
                fence,
                before,
                end: Some(ends.get(&lease).copied()),
            };
            (key, grant)
        };
        by_fence.iter().zip(before).map(grant).collect()
    }

    fn ask(
        &self,
        steps: &mut Calls<LeaseTable>,
        call: &Call<Asked, Ret>,
        wanted: Wanted,
        grants: &BTreeMap<u32, Grant>,
    ) {
        let Wanted { key, amount, .. } = wanted;
        let told = grants.get(&key).copied();
        let Some(wait) = wanted.wait else {
            steps.push(step(call, Op::Acquire { key, amount, told }));
            return;
        };
        if vanished(call, grants) {
            return;
        }
        let join = Op::Join {
            key,
            amount,
            deaths: self.deaths_before(call.begun),
        };
        match &call.answer {
            Some((_, Ret::Refused)) => {
                let waited = nanos(wait).saturating_sub(nanos(TICK));
                let over = step(call, Op::GiveUp(key)).done();
                let begun = call.begun + waited;
                steps.push(Call { begun, ..over });
            }
            answer => {
                let serve = |grant| step(call, Op::Serve { key, grant }).done();
                steps.extend(told.map(serve));
                let last = match answer {
                    Some((_, Ret::Gone)) => Op::Renew(key),
                    _ => Op::Look(key),
                };
                steps.extend(heard(call, last));
            }
        }
        steps.push(step(call, join).done());
    }

    /// For each life, from the first on who waited when it was over and was never told anything. Who that was, and
    /// in which order they came, makes no difference; to try it out would take for ever.
    fn blurs(&self, grants: &BTreeMap<u32, Grant>) -> impl Iterator<Item = Call<Op, Ret>> {
        let mut since = 0;
        self.lives.iter().filter_map(move |life| {
            let window = since..=life.over;
            since = life.over.saturating_add(1);
            let vanished = self.calls.iter().filter(|call| vanished(call, grants));
            let begun = vanished.map(|call| call.begun);
            let first = begun.filter(|begun| window.contains(begun)).min()?;
            Some(between(first, Op::Blur, life.over))
        })
    }

    /// How many brokers were dead for sure at `moment`, and how many at the most: one that is being killed may
    /// still answer.
    fn deaths_before(&self, moment: u64) -> (u64, u64) {
        let next = self.lives.iter().skip(1);
        let replaced = next.filter(|life| life.begun < moment).count();
        let killed = self.lives.iter().filter(|life| life.over < moment);
        (replaced as u64, killed.count() as u64)
    }

    fn deaths(&self) -> impl Iterator<Item = Call<Op, Ret>> {
        let next = self.lives.iter().skip(1);
        let deaths = self.lives.iter().zip(next);
        deaths.map(|(life, next)| between(life.over, Op::Die, next.begun))
    }

    /// A lease runs out between the promise that was told last and the first answer that says so.
    fn expiry(&self, key: u32, lease: u32) -> Call<Op, Ret> {
        let mut seen_at = u64::MAX;
        for call in &self.calls {
            if let Some((at, Ret::Lease(seen))) = &call.answer
                && seen.lease == lease
                && seen.phase != Phase::Held
            {
                seen_at = seen_at.min(*at);
            }
        }
        between(
            self.not_in_grace(self.promised(key)),
            Op::Expire(key),
            seen_at,
        )
    }

    /// Until then the lease is its holder's, by what that was told: since it asked at first, or since a heartbeat.
    fn promised(&self, key: u32) -> u64 {
        let (mut first, mut last, mut ttl) = (u64::MAX, 0, nanos(TICK));
        for call in &self.calls {
            match (call.op, &call.answer) {
                (Asked::Lease(wanted), _) if wanted.key == key => {
                    first = first.min(call.begun);
                    ttl = nanos(wanted.ttl);
                }
                (Asked::Else(Op::Renew(renewed)), Some((_, Ret::Lease(_)))) if renewed == key => {
                    last = last.max(call.begun);
                }
                _ => {}
            }
        }
        first.max(last).saturating_add(ttl - nanos(TICK))
    }

    fn not_in_grace(&self, moment: u64) -> u64 {
        let first = self.lives.first().map_or(u64::MAX, |life| life.over);
        if moment <= first {
            return moment;
        }
        let mut later = self.lives.iter().skip(1);
        let windows = later.find_map(|life| {
            let from = moment.max(life.begun.saturating_add(nanos(GRACE)));
            (from <= life.over).then_some(from)
        });
        windows.unwrap_or(u64::MAX)
    }
}

/// Whether it waited, was not answered, and never became a lease.
fn vanished(call: &Call<Asked, Ret>, grants: &BTreeMap<u32, Grant>) -> bool {
    match call.op {
        Asked::Lease(wanted) => {
            wanted.wait.is_some() && call.answer.is_none() && !grants.contains_key(&wanted.key)
        }
        Asked::Else(_) => false,
    }
}

fn ran_out(grant: &Grant) -> bool {
    grant.end == Some(Some(End::Expired))
}

fn step(call: &Call<Asked, Ret>, op: Op) -> Call<Op, Ret> {
    Call {
        client: call.client,
        begun: call.begun,
        op,
        answer: call.answer.clone(),
    }
}

/// Nothing can be learnt from a look that was not answered.
fn heard(call: &Call<Asked, Ret>, op: Op) -> Option<Call<Op, Ret>> {
    let is_heard = call.answer.is_some() || !op.only_looks();
    is_heard.then(|| step(call, op))
}

fn between(begun: u64, op: Op, at: u64) -> Call<Op, Ret> {
    Call {
        client: NOBODY,
        begun,
        op,
        answer: Some((at, Ret::Done)),
    }
}

fn nanos(duration: Duration) -> u64 {
    // Half a millennium.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Call<Op, Ret> {
    /// The same without anything that is told.
    fn done(self) -> Self {
        let answer = self.answer.map(|(at, _)| (at, Ret::Done));
        Self { answer, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease_table::Seen;
    use crate::linear::linearize;

    const SECOND: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;

    fn wanted(key: u32, wait: Option<u64>) -> Wanted {
        Wanted {
            key,
            amount: Amount::Exclusive,
            wait: wait.map(Duration::from_millis),
            ttl: Duration::from_secs(1),
        }
    }

    fn call(op: impl Into<Asked>, begun: u64, at: u64, ret: Ret) -> Call<Asked, Ret> {
        Call {
            client: 0,
            begun,
            op: op.into(),
            answer: Some((at, ret)),
        }
    }

    fn lost(op: impl Into<Asked>, begun: u64) -> Call<Asked, Ret> {
        Call {
            client: 9,
            begun,
            op: op.into(),
            answer: None,
        }
    }

    fn seen(lease: u32, phase: Phase) -> Ret {
        Ret::Lease(Seen {
            lease,
            fence: 10 + u64::from(lease),
            phase,
        })
    }

    fn held(lease: u32) -> Ret {
        seen(lease, Phase::Held)
    }

    fn released(lease: u32) -> Ret {
        seen(lease, Phase::Ended(End::Released))
    }

    fn expired(lease: u32) -> Ret {
        seen(lease, Phase::Reclaiming(End::Expired))
    }

    fn one_life() -> Vec<Life> {
        vec![Life {
            begun: 0,
            over: u64::MAX,
        }]
    }

    fn is_explained(calls: &[Call<Asked, Ret>], lives: Vec<Life>) -> bool {
        let calls = calls.to_vec();
        let steps = History { calls, lives }.steps();
        linearize(
            &LeaseTable::new(24),
            &steps,
            Op::is_best_at_once,
            Op::is_prompt,
        )
        .is_ok()
    }

    #[test]
    fn a_wait_ends_in_a_grant_or_when_it_is_over() {
        let first = call(wanted(1, None), 0, MS, held(1));
        let back = call(Op::Release(1), 20 * MS, 21 * MS, released(1));
        let check = |waited: Call<Asked, Ret>, expected: bool| {
            let calls = [first.clone(), back.clone(), waited.clone()];
            assert_eq!(is_explained(&calls, one_life()), expected, "{waited:?}");
        };
        let wait = |at, ret| call(wanted(2, Some(10)), 5 * MS, at, ret);
        check(wait(22 * MS, held(2)), true);
        check(wait(19 * MS, held(2)), false);
        check(wait(16 * MS, Ret::Refused), true);
        check(wait(13 * MS, Ret::Refused), false);
        // It can have been over before there was room, but not if it has so much time.
        check(wait(30 * MS, Ret::Refused), true);
        let long = call(wanted(2, Some(25)), 5 * MS, 31 * MS, Ret::Refused);
        check(long, false);
    }

    #[test]
    fn who_waits_on_a_connection_dies_with_the_broker() {
        let lives = vec![
            Life {
                begun: 0,
                over: 10 * MS,
            },
            Life {
                begun: 12 * MS,
                over: u64::MAX,
            },
        ];
        let first = call(wanted(1, None), 0, MS, held(1));
        let waits = lost(wanted(2, Some(1000)), 5 * MS);
        let back = call(Op::Release(1), 20 * MS, 21 * MS, released(1));
        let none = call(Op::Taken, 22 * MS, 23 * MS, Ret::Taken(0, [].into()));
        let ghost = call(Op::Look(2), 24 * MS, 25 * MS, held(2));
        let again = call(wanted(2, None), 24 * MS, 25 * MS, held(2));
        let check = |last: &Call<Asked, Ret>, expected: bool| {
            let calls = [&first, &waits, &back, &none, last].map(Clone::clone);
            assert_eq!(is_explained(&calls, lives.clone()), expected, "{last:?}");
        };
        check(&none, true);
        check(&again, true);
        check(&ghost, false);
    }

    #[test]
    fn nothing_expires_before_its_time() {
        let first = call(wanted(1, None), 0, MS, held(1));
        let beat = call(Op::Renew(1), 500 * MS, 501 * MS, held(1));
        let look = |at, ret| call(Op::Look(1), at, at + MS, ret);
        let check = |calls: &[Call<Asked, Ret>], expected: bool| {
            assert_eq!(is_explained(calls, one_life()), expected, "{calls:?}");
        };
        check(&[first.clone(), look(SECOND, expired(1))], true);
        check(&[first.clone(), look(SECOND - 2 * MS, expired(1))], false);
        let kept = [first.clone(), beat.clone(), look(1400 * MS, held(1))];
        check(&kept, true);
        check(&[&kept[..], &[look(1600 * MS, expired(1))]].concat(), true);
        let early = [first.clone(), beat.clone(), look(1400 * MS, expired(1))];
        check(&early, false);
        // Also what does not name the lease shows that it was over too early.
        let unnamed = call(Op::Check(11), 900 * MS, 901 * MS, Ret::Current(false));
        check(
            &[first.clone(), unnamed, look(1100 * MS, expired(1))],
            false,
        );
        let late = call(Op::Renew(1), 1200 * MS, 1201 * MS, held(1));
        check(&[first, look(1100 * MS, expired(1)), late], false);
    }

    #[test]
    fn nothing_expires_for_half_a_minute_after_a_start() {
        let first = call(wanted(1, None), 0, MS, held(1));
        let lives = |over| {
            vec![
                Life { begun: 0, over },
                Life {
                    begun: over + MS,
                    over: u64::MAX,
                },
            ]
        };
        let over = |at| [first.clone(), call(Op::Look(1), at, at + MS, expired(1))];
        assert!(is_explained(&over(3 * SECOND), lives(2 * SECOND)));
        assert!(!is_explained(&over(3 * SECOND), lives(SECOND / 2)));
        assert!(is_explained(&over(31 * SECOND), lives(SECOND / 2)));
    }
}
