//! The part of `select` that every broker knows: devices by their ids.

use crate::bytes::shortened;

/// Most ids in one expression.
pub const SELECT_IDS_MAX: usize = 64;

/// Why an expression is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{expression}` is no selection: expected `device.id == 'ID'` or `device.id in ['ID', 'ID']`"
)]
pub struct SelectError {
    /// The expression, shortened.
    pub expression: String,
}

/// The expression that only the devices of these ids satisfy.
///
/// ```
/// use gpu_api::select;
/// assert_eq!(select::of_ids(&["a"]), "device.id == 'a'");
/// assert_eq!(select::of_ids(&["a", "b"]), "device.id in ['a', 'b']");
/// ```
pub fn of_ids<S: AsRef<str>>(ids: &[S]) -> String {
    let quoted: Vec<String> = ids.iter().map(|id| quoted(id.as_ref())).collect();
    match quoted.as_slice() {
        [one] => format!("device.id == {one}"),
        many => format!("device.id in [{}]", many.join(", ")),
    }
}

/// The ids that `expression` names.
///
/// # Errors
/// [`SelectError`] for an expression that is not about ids alone.
pub fn ids(expression: &str) -> Result<Vec<String>, SelectError> {
    parsed(expression.trim())
        .filter(|ids| (1..=SELECT_IDS_MAX).contains(&ids.len()))
        .ok_or_else(|| SelectError {
            expression: shortened(expression),
        })
}

fn quoted(id: &str) -> String {
    format!("'{}'", id.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn parsed(expression: &str) -> Option<Vec<String>> {
    let rest = expression.strip_prefix("device.id")?;
    if let Some(rest) = rest.trim_start().strip_prefix("==") {
        let (id, rest) = literal(rest.trim_start())?;
        return rest.trim().is_empty().then(|| vec![id]);
    }
    let list = rest
        .strip_prefix(char::is_whitespace)?
        .trim_start()
        .strip_prefix("in")?;
    let mut rest = list
        .trim_start()
        .strip_prefix('[')?
        .strip_suffix(']')?
        .trim();
    let mut ids = Vec::new();
    while !rest.is_empty() && ids.len() <= SELECT_IDS_MAX {
        let (id, after) = literal(rest)?;
        ids.push(id);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(ids)
}

/// The string literal that `text` begins with, in either quote, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(
                chars
                    .next()
                    .map(|(_, c)| c)
                    .filter(|c| matches!(c, '\\' | '\'' | '"'))?,
            ),
            c if c == quote => return Some((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for case in [
            vec!["GPU-1"],
            vec!["a", "b"],
            vec!["it's", "a\\b"],
            vec!["[', ']"],
        ] {
            assert_eq!(ids(&of_ids(&case)).expect("its own text"), case);
        }
    }

    #[test]
    fn both_quotes_and_any_space_are_read() {
        assert_eq!(ids(" device.id==\"a\" ").expect("one id"), ["a"]);
        assert_eq!(
            ids("device.id  in ['a','b',]").expect("two ids"),
            ["a", "b"]
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "device.id",
            "device.id == a",
            "device.id == 'a",
            "device.id in []",
            "device.id == 'a' || true",
            "device.idin ['a']",
            "device.id in ['a' 'b']",
            "device.memory > 4",
            "device.id == 'a\\x'",
        ] {
            assert!(ids(text).is_err(), "{text}");
        }
    }
}
