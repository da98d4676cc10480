//! Leases by the names of their holders.

use std::collections::BTreeMap;

use gpu_api::Lease;

use crate::cli::exit::Failure;

const ID_PREFIX: &str = "l-";
/// Letters and digits behind [`ID_PREFIX`].
const ID_CHARS: usize = 12;

/// Whether `text` is an id, not a name.
pub(super) fn is_id(text: &str) -> bool {
    text.strip_prefix(ID_PREFIX).is_some_and(|rest| {
        rest.len() == ID_CHARS && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The one lease among `leases` whose holder is called `name`; one that has ended only if no other is.
pub(super) fn find(leases: Vec<Lease>, name: &str) -> Result<Lease, Failure> {
    let mut called: Vec<Lease> = leases
        .into_iter()
        .filter(|lease| lease.holder.name == name || lease.id == name)
        .collect();
    if called.iter().any(|lease| !super::is_history(lease)) {
        called.retain(|lease| !super::is_history(lease));
    }
    match called.as_slice() {
        [_] => Ok(called.swap_remove(0)),
        [] => Err(
            Failure::refused(format!("no lease and no holder is called `{name}`"))
                .hint("`gpu-manager leases` lists them"),
        ),
        many => {
            let ids: Vec<&str> = many.iter().map(|lease| lease.id.as_str()).collect();
            Err(Failure::usage(format!(
                "{} leases have a holder called `{name}`",
                many.len()
            ))
            .hint(format!("name one of {}", ids.join(", "))))
        }
    }
}

/// The holders of `leases` by id.
pub(super) fn holders(leases: &[Lease]) -> BTreeMap<String, String> {
    let pair = |lease: &Lease| (lease.id.clone(), lease.holder.name.clone());
    leases.iter().map(pair).collect()
}

/// Whether the reason why `lease` waits mentions another.
pub(super) fn mentions_leases(lease: &Lease) -> bool {
    let reason = lease
        .waiting
        .as_ref()
        .map(|waiting| waiting.reason.as_str());
    reason.is_some_and(|reason| words(reason).any(|(word, _)| is_id(word)))
}

/// Puts the holder's name to every lease that a reason mentions, where it is known.
pub(super) fn name_holders(leases: &mut [Lease], names: &BTreeMap<String, String>) {
    for waiting in leases.iter_mut().filter_map(|lease| lease.waiting.as_mut()) {
        waiting.reason = with_names(&waiting.reason, names);
    }
}

/// `held for l-4x.., which` as `held for train-a (l-4x..), which`.
fn with_names(text: &str, names: &BTreeMap<String, String>) -> String {
    let named = |word: &str| match names.get(word) {
        Some(name) if is_id(word) => format!("{name} ({word})"),
        _ => word.to_owned(),
    };
    words(text)
        .map(|(word, rest)| format!("{}{rest}", named(word)))
        .collect()
}

/// The words of `text`, each with what follows it up to the next.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let start = behind.find(in_word).unwrap_or(behind.len());
        let (gap, next) = behind.split_at(start);
        rest = next;
        Some((word, gap))
    })
}

#[cfg(test)]
mod tests {
    use gpu_api::{Holder, LeaseState};

    use super::*;
    use crate::cli::show::example;

    const HEAD: &str = "l-0123456789ab";

    fn called(id: &str, name: &str, state: LeaseState) -> Lease {
        let lease = example::active(id);
        Lease {
            state,
            holder: Holder {
                name: name.to_owned(),
                ..lease.holder.clone()
            },
            ..lease
        }
    }

    #[test]
    fn a_lease_is_found_by_a_name_that_only_it_has() {
        let leases = vec![
            called("l-1", "train-a", LeaseState::Active),
            called("l-2", "comfy", LeaseState::Ended),
            called("l-3", "comfy", LeaseState::Active),
            called("l-4", "twin", LeaseState::Active),
            called("l-5", "twin", LeaseState::Waiting),
            called("l-6", "gone", LeaseState::Ended),
        ];
        let find = |name: &str| find(leases.clone(), name).map(|lease| lease.id).ok();
        for (name, expected) in [
            ("train-a", Some("l-1")),
            ("comfy", Some("l-3")),
            ("twin", None),
            ("gone", Some("l-6")),
            ("nobody", None),
            ("l-4", Some("l-4")),
        ] {
            assert_eq!(find(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn reasons_name_the_holders_that_are_known() {
        let names = BTreeMap::from([(HEAD.to_owned(), "train-a".to_owned())]);
        let table = [
            (
                format!("sim-0 is held for {HEAD}, which goes first"),
                format!("sim-0 is held for train-a ({HEAD}), which goes first"),
            ),
            (
                format!("{HEAD} goes first"),
                format!("train-a ({HEAD}) goes first"),
            ),
            (
                "l-aaaaaaaaaaaa goes first".to_owned(),
                "l-aaaaaaaaaaaa goes first".to_owned(),
            ),
            (
                "needs 12 GiB; über (8 GiB)".to_owned(),
                "needs 12 GiB; über (8 GiB)".to_owned(),
            ),
        ];
        for (reason, expected) in table {
            assert_eq!(with_names(&reason, &names), expected);
        }
        assert!(is_id(HEAD));
        assert!(!is_id("l-short"));
        assert!(!is_id("train-a"));
    }
}
