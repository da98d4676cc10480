//! Whether the books and the reference are of one mind.

use gpu_lease::{
    Answer, At, Books, Denial, DeviceKey, DeviceState, Effect, Explanation, Lease, Outcome,
    TenantStanding,
};

use crate::reference::{Card, Did, Reference};

/// Says where the two differ after the same command.
pub(crate) fn of_outcomes(outcome: &Outcome, did: &Did) -> Result<(), String> {
    if !same_answer(&outcome.answer, &did.answer) {
        return differ("answer", &outcome.answer, &did.answer);
    }
    let (mut mine, mut theirs) = (texts(&outcome.effects), texts(&did.effects));
    mine.sort();
    theirs.sort();
    match mine == theirs {
        true => Ok(()),
        false => differ("effects", &mine, &theirs),
    }
}

/// Says where the two states differ.
pub(crate) fn of_states(books: &Books, reference: &Reference) -> Result<(), String> {
    let mut theirs: Vec<&Lease> = reference.leases.iter().collect();
    theirs.sort_by_key(|lease| lease.id);
    let mine: Vec<&Lease> = books.leases().collect();
    if mine.len() != theirs.len() {
        return differ("number of leases", &mine, &theirs);
    }
    for (mine, theirs) in mine.into_iter().zip(theirs) {
        if !same_lease(mine, theirs) {
            return differ("lease", mine, theirs);
        }
    }
    let counters = books.counters();
    let mine = (counters.next_fence.0, counters.generation);
    let theirs = (reference.next_fence, reference.generation);
    if mine != theirs {
        return differ("counters", &mine, &theirs);
    }
    if books.next_deadline() != reference.next_deadline() {
        let theirs = reference.next_deadline();
        return differ("next deadline", &books.next_deadline(), &theirs);
    }
    of_devices(books, reference)
}

/// Says where the two explain waiting differently.
pub(crate) fn of_reasons(at: At, books: &Books, reference: &Reference) -> Result<(), String> {
    let (mine, theirs) = (books.waiting(at), reference.waiting(at));
    match mine == theirs {
        true => Ok(()),
        false => differ("reasons to wait", &mine, &theirs),
    }
}

/// Says where the two differ about tenants. What was had of late may differ by a thousandth.
pub(crate) fn of_tenants(at: At, books: &Books, reference: &Reference) -> Result<(), String> {
    let (mine, theirs) = (books.tenants(at), reference.tenants(at));
    let near = |a: u64, b: u64| a.abs_diff(b) <= b / 1000 + 2;
    let same = |(a, b): (&TenantStanding, &TenantStanding)| {
        let words = |one: &TenantStanding| (one.key.clone(), one.weight, one.held, one.waiting);
        words(a) == words(b) && near(a.used, b.used)
    };
    let there = |all: &[TenantStanding]| -> Vec<TenantStanding> {
        let mut all = all.to_vec();
        // Where next to nothing was had, one may round it to nothing.
        all.retain(|one| one.used > 2 || one.held.leases + one.waiting > 0);
        all
    };
    let (left, right) = (there(&mine), there(&theirs));
    match left.len() == right.len() && left.iter().zip(&right).all(same) {
        true => Ok(()),
        false => differ("tenants", &mine, &theirs),
    }
}

fn of_devices(books: &Books, reference: &Reference) -> Result<(), String> {
    let mine: Vec<&DeviceState> = books.devices().collect();
    let theirs: Vec<&Card> = reference.cards.iter().flatten().collect();
    if mine.len() != theirs.len() || books.is_recovering() != reference.cards.is_none() {
        return differ("inventory", &mine, &theirs);
    }
    for (state, card) in mine.into_iter().zip(theirs) {
        let of_books = (
            (
                &state.device,
                &state.reading,
                state.lost_since,
                state.read_after,
            ),
            (state.usage, state.free(), &state.settings),
        );
        let settings = reference.settings(&card.device);
        let of_reference = (
            (
                &card.device,
                &card.reading,
                card.lost_since,
                card.read_after,
            ),
            (reference.usage(card), reference.free(card), &settings),
        );
        if of_books != of_reference {
            return differ("device", &of_books, &of_reference);
        }
    }
    Ok(())
}

/// Revisions apart, which the reference does not count.
fn same_lease(a: &Lease, b: &Lease) -> bool {
    a.id == b.id
        && a.phase == b.phase
        && a.priority == b.priority
        && a.created == b.created
        && a.request == b.request
}

fn same_answer(a: &Answer, b: &Answer) -> bool {
    match (a, b) {
        (Answer::Acquire(Ok(a)), Answer::Acquire(Ok(b)))
        | (Answer::Lease(Ok(a)), Answer::Lease(Ok(b))) => same_lease(a, b),
        (Answer::Acquire(Err(Denial::NeverFits(_))), Answer::Acquire(Err(b))) => {
            matches!(b, Denial::NeverFits(_))
        }
        (Answer::Acquire(Err(a)), Answer::Acquire(Err(b))) => a == b,
        (Answer::Lease(Err(a)), Answer::Lease(Err(b))) => a == b,
        (Answer::Device(a), Answer::Device(b)) => a == b,
        (Answer::Emergency(a), Answer::Emergency(b)) => a == b,
        (Answer::Policy(a), Answer::Policy(b)) => a == b,
        (Answer::Explain(a), Answer::Explain(b)) => {
            let words = |one: &Explanation| (one.request.clone(), one.priority, one.tenant.clone());
            words(a) == words(b) && a.hits == b.hits && same_outlook(&a.outcome, &b.outcome)
        }
        (Answer::Nothing, Answer::Nothing) => true,
        _ => false,
    }
}

fn same_outlook(a: &Result<Vec<DeviceKey>, Denial>, b: &Result<Vec<DeviceKey>, Denial>) -> bool {
    match (a, b) {
        (Err(Denial::NeverFits(_)), Err(Denial::NeverFits(_))) => true,
        (a, b) => a == b,
    }
}

fn texts(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(|effect| format!("{effect:?}")).collect()
}

fn differ<A: std::fmt::Debug, B: std::fmt::Debug>(
    what: &str,
    books: &A,
    reference: &B,
) -> Result<(), String> {
    Err(format!(
        "{what} differs\n  books:     {books:?}\n  reference: {reference:?}"
    ))
}
