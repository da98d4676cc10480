//! Whether the books and the reference are of one mind.

use gpu_lease::{Answer, At, Books, Denial, DeviceState, Effect, Lease, Outcome};

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
        (Answer::Nothing, Answer::Nothing) => true,
        _ => false,
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
