//! Whether what concurrent clients were told can be put into an order in which one thing happened after the other.
//!
//! The search is that of Wing and Gong with Lowe's memory of where it has been: without that memory, operations
//! that a killed broker never answered make it try the same again and again. What it is asked with is a
//! [`SequentialSpec`] of stateright, whose own tester does the same without the memory; a test holds the two
//! to each other.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::semantics::SequentialSpec;

/// One operation of one client, with moments of a clock that all clients share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<Op, Ret> {
    /// Who asked.
    pub client: usize,
    /// When it was sent.
    pub begun: u64,
    /// What was asked.
    pub op: Op,
    /// When it was answered and how; of what was never answered nobody knows whether it was done.
    pub answer: Option<(u64, Ret)>,
}

/// Operations of `S`.
pub type Calls<S> = Vec<Call<<S as SequentialSpec>::Op, <S as SequentialSpec>::Ret>>;

/// No order explains what clients were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuted {
    /// How many operations the longest order that was tried explains.
    pub explained: usize,
    /// The operations of which none can come next there.
    pub stuck: Vec<String>,
}

impl fmt::Display for Refuted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (explained, stuck) = (self.explained, self.stuck.join("\n  "));
        write!(
            f,
            "after {explained} operations none of these can have come next:\n  {stuck}"
        )
    }
}

/// Finds an order of `calls` that `spec` explains, as places in `calls`: each answered operation happens once,
/// between its moments; one that was not answered happens once after it was sent, or never. What is `best_at_once`
/// happens as soon as it is explained: nothing can be won by doing it later, as with what only looks. What
/// `is_prompt` is tried as soon as it may happen, all else as late as it may: a good guess spares much of the search,
/// and excludes nothing.
///
/// # Errors
/// There is none.
pub fn linearize<S>(
    spec: &S,
    calls: &[Call<S::Op, S::Ret>],
    best_at_once: fn(&S::Op) -> bool,
    is_prompt: fn(&S::Op) -> bool,
) -> Result<Vec<usize>, Refuted>
where
    S: SequentialSpec + Clone + PartialEq + Hash,
    S::Op: fmt::Debug,
    S::Ret: fmt::Debug,
{
    let mut search = Search::of(calls, is_prompt);
    let mut frames = vec![search.frame(spec.clone())];
    while let Some(frame) = frames.last_mut() {
        if search.is_over() {
            return Ok(search.order);
        }
        let Some(next) = frame.candidates.pop() else {
            frames.pop();
            search.take_back();
            continue;
        };
        let mut state = frame.state.clone();
        if !search.explains(&mut state, next) {
            continue;
        }
        let call = &calls[next];
        if call.answer.is_none() && state == frame.state {
            continue; // It can still be done when that makes a difference.
        }
        if best_at_once(&call.op) {
            frame.candidates.clear();
        }
        if search.is_new(&state, next) {
            search.put(next);
            frames.push(search.frame(state));
        }
    }
    Err(search.refuted())
}

struct Search<'a, Op, Ret> {
    calls: &'a [Call<Op, Ret>],
    /// The places of `calls` as they were sent.
    sent: Vec<usize>,
    /// When each of `calls` is guessed to have happened.
    guesses: Vec<u64>,
    done: Vec<bool>,
    order: Vec<usize>,
    unanswered: usize,
    seen: BTreeSet<(u64, u64)>,
    longest: Vec<usize>,
}

struct Frame<S> {
    state: S,
    /// The one to be tried next is the last.
    candidates: Vec<usize>,
}

impl<'a, Op: fmt::Debug, Ret: fmt::Debug> Search<'a, Op, Ret> {
    fn of(calls: &'a [Call<Op, Ret>], is_prompt: fn(&Op) -> bool) -> Self {
        let mut sent: Vec<usize> = (0..calls.len()).collect();
        sent.sort_by_key(|place| calls[*place].begun);
        let guess = |call: &Call<Op, Ret>| match &call.answer {
            Some(_) if is_prompt(&call.op) => call.begun,
            Some((at, _)) => *at,
            None => u64::MAX,
        };
        Self {
            calls,
            sent,
            guesses: calls.iter().map(guess).collect(),
            done: vec![false; calls.len()],
            order: Vec::new(),
            unanswered: calls.iter().filter(|call| call.answer.is_none()).count(),
            seen: BTreeSet::new(),
            longest: Vec::new(),
        }
    }

    /// Everything that was answered has its place.
    fn is_over(&self) -> bool {
        let open = self.order.iter();
        let open = open.filter(|place| self.calls[**place].answer.is_none());
        self.order.len() - open.count() == self.calls.len() - self.unanswered
    }

    fn frame<S>(&mut self, state: S) -> Frame<S> {
        Frame {
            state,
            candidates: self.candidates(),
        }
    }

    /// What can come next: what was sent before the first answer that is still to be explained. What is guessed to
    /// have come early is tried first, what was never answered is tried last.
    fn candidates(&self) -> Vec<usize> {
        let mut first_answer = u64::MAX;
        let mut candidates = Vec::new();
        for &place in &self.sent {
            let call = &self.calls[place];
            if call.begun > first_answer {
                break;
            }
            if !self.done[place] {
                first_answer = first_answer.min(self.answered_at(place));
                candidates.push(place);
            }
        }
        candidates.retain(|place| self.calls[*place].begun < first_answer);
        candidates.sort_by_key(|place| std::cmp::Reverse(self.guesses[*place]));
        candidates
    }

    fn answered_at(&self, place: usize) -> u64 {
        let answer = self.calls[place].answer.as_ref();
        answer.map_or(u64::MAX, |(at, _)| *at)
    }

    fn explains<S: SequentialSpec<Op = Op, Ret = Ret>>(&self, state: &mut S, place: usize) -> bool {
        let call = &self.calls[place];
        match &call.answer {
            Some((_, ret)) => state.is_valid_step(&call.op, ret),
            None => {
                state.invoke(&call.op);
                true
            }
        }
    }

    /// Whether this state was not reached yet by these operations in another order. Two digests of 64 bits stand
    /// for both.
    fn is_new(&mut self, state: &impl Hash, next: usize) -> bool {
        self.done[next] = true;
        let digest = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &self.done, state).hash(&mut hasher);
            hasher.finish()
        };
        let digests = (digest(0), digest(1));
        self.done[next] = false;
        self.seen.insert(digests)
    }

    fn put(&mut self, place: usize) {
        self.done[place] = true;
        self.order.push(place);
        if self.order.len() > self.longest.len() {
            self.longest.clone_from(&self.order);
        }
    }

    fn take_back(&mut self) {
        if let Some(place) = self.order.pop() {
            self.done[place] = false;
        }
    }

    fn refuted(mut self) -> Refuted {
        self.done.fill(false);
        for &place in &self.longest {
            self.done[place] = true;
        }
        let stuck = self.candidates().into_iter().rev();
        Refuted {
            explained: self.longest.len(),
            stuck: stuck
                .map(|place| format!("{:?}", self.calls[place]))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

    use super::*;
    use crate::Dice;

    type Registered = Calls<Register<char>>;

    fn call(
        client: usize,
        begun: u64,
        op: RegisterOp<char>,
        answer: Option<(u64, RegisterRet<char>)>,
    ) -> Call<RegisterOp<char>, RegisterRet<char>> {
        Call {
            client,
            begun,
            op,
            answer,
        }
    }

    fn write(client: usize, from: u64, to: u64, value: char) -> Registered {
        let answer = Some((to, RegisterRet::WriteOk));
        vec![call(client, from, RegisterOp::Write(value), answer)]
    }

    fn read(client: usize, from: u64, to: u64, value: char) -> Registered {
        let answer = Some((to, RegisterRet::ReadOk(value)));
        vec![call(client, from, RegisterOp::Read, answer)]
    }

    fn only_reads(op: &RegisterOp<char>) -> bool {
        *op == RegisterOp::Read
    }

    /// Any guess will do.
    fn is_write(op: &RegisterOp<char>) -> bool {
        *op != RegisterOp::Read
    }

    fn is_linear(calls: &Registered) -> bool {
        linearize(&Register('a'), calls, only_reads, is_write).is_ok()
    }

    /// What stateright says of the same.
    fn is_linear_to_stateright(calls: &Registered) -> bool {
        let mut moments: Vec<(u64, usize, bool)> = Vec::new();
        for (place, call) in calls.iter().enumerate() {
            moments.push((call.begun, place, true));
            moments.extend(call.answer.iter().map(|(at, _)| (*at, place, false)));
        }
        moments.sort_unstable();
        let mut tester = LinearizabilityTester::new(Register('a'));
        for (_, place, is_begin) in moments {
            let Call {
                client, op, answer, ..
            } = calls[place].clone();
            let told = match (is_begin, answer) {
                (false, Some((_, ret))) => tester.on_return(client, ret),
                _ => tester.on_invoke(client, op),
            };
            assert!(told.is_ok(), "{told:?}");
        }
        tester.is_consistent()
    }

    #[test]
    fn what_overlaps_may_come_in_any_order_and_what_does_not_may_not() {
        let overlapping = [write(0, 0, 9, 'b'), read(1, 1, 3, 'b'), read(2, 4, 8, 'b')].concat();
        assert!(is_linear(&overlapping));
        let flickering = [write(0, 0, 9, 'b'), read(1, 1, 3, 'b'), read(2, 4, 8, 'a')].concat();
        assert!(!is_linear(&flickering), "it was seen, and then it was not");
        let stale = [write(0, 0, 1, 'b'), read(1, 2, 3, 'a')].concat();
        let refuted = linearize(&Register('a'), &stale, only_reads, is_write)
            .expect_err("it was answered before");
        assert_eq!(refuted.explained, 1);
        assert!(refuted.to_string().contains("ReadOk('a')"), "{refuted}");
    }

    #[test]
    fn what_was_never_answered_happened_at_any_later_time_or_never() {
        let open = vec![call(0, 5, RegisterOp::Write('b'), None)];
        for (seen, expected) in [("aab", true), ("aaa", true), ("abb", true), ("aba", false)] {
            let reads = seen.chars().zip(0..);
            let reads = reads.flat_map(|(value, n)| read(1, 10 + 2 * n, 11 + 2 * n, value));
            let calls = open.iter().cloned().chain(reads).collect();
            assert_eq!(is_linear(&calls), expected, "{seen}");
        }
        let early = [open, read(1, 0, 3, 'b')].concat();
        assert!(!is_linear(&early), "nothing happens before it is asked for");
    }

    /// Up to four clients that read and write at random; now and then an answer is missing.
    fn anything(dice: &mut Dice) -> Registered {
        let clients = 2 + dice.below(3) as usize;
        let mut calls = Registered::new();
        for client in 0..clients {
            let mut now = dice.below(6) * 8;
            for _ in 0..1 + dice.below(4) {
                // Moments of different clients are never the same.
                let mut moment = |dice: &mut Dice| {
                    now += 8 * (1 + dice.below(5));
                    now + client as u64
                };
                let begun = moment(dice);
                let value = char::from(b'a' + dice.below(3) as u8);
                let (op, ret) = match dice.below(2) {
                    0 => (RegisterOp::Write(value), RegisterRet::WriteOk),
                    _ => (RegisterOp::Read, RegisterRet::ReadOk(value)),
                };
                let answer = (dice.below(8) > 0).then(|| (moment(dice), ret));
                let is_last = answer.is_none();
                calls.push(call(client, begun, op, answer));
                if is_last {
                    break;
                }
            }
        }
        calls
    }

    #[test]
    fn stateright_says_the_same_of_two_thousand_histories() {
        let mut dice = Dice::new(1);
        let (mut linear, rounds) = (0, 2_000);
        for round in 0..rounds {
            let calls = anything(&mut dice);
            let expected = is_linear_to_stateright(&calls);
            assert_eq!(is_linear(&calls), expected, "round {round}: {calls:#?}");
            linear += u32::from(expected);
        }
        assert!(
            (200..1_800).contains(&linear),
            "{linear} of {rounds} are linearizable"
        );
    }
}
