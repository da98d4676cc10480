//! Which devices a request is for: so far, devices by id.

use gpu_lease::{DeviceId, Select};

use crate::units::shortened;

/// A selection longer than this many bytes is refused.
pub const SELECT_BYTES_MAX: usize = 2048;

/// A selection may name this many devices.
pub const SELECT_IDS_MAX: usize = 64;

const DEVICE_ID_BYTES_MAX: usize = 128;

/// Text that is no selection of devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// An id that no device can have.
    #[error("`{0}` is no device id")]
    Id(String),
    /// An empty list.
    #[error("the selection names no device")]
    NoIds,
    /// More than [`SELECT_BYTES_MAX`] bytes.
    #[error("the selection is longer than {SELECT_BYTES_MAX} bytes")]
    TooLong,
    /// More than [`SELECT_IDS_MAX`] ids.
    #[error("the selection names more than {SELECT_IDS_MAX} devices")]
    TooManyIds,
    /// Not one of the two forms.
    #[error(
        "the selection `{0}` is not supported yet: write `device.id == 'ID'` or `device.id in ['ID', 'ID']`"
    )]
    Unsupported(String),
}

/// The devices that `text` selects: `device.id == 'a'` or `device.id in ['a', "b"]`.
///
/// # Errors
/// For every other expression; see [`SelectError`].
pub fn parse_select(text: &str) -> Result<Select, SelectError> {
    if text.len() > SELECT_BYTES_MAX {
        return Err(SelectError::TooLong);
    }
    let ids = one_id(text).or_else(|| several_ids(text));
    let ids = ids.ok_or_else(|| SelectError::Unsupported(shortened(text)))?;
    match ids.len() {
        0 => Err(SelectError::NoIds),
        1..=SELECT_IDS_MAX => ids
            .into_iter()
            .map(device_id)
            .collect::<Result<_, _>>()
            .map(Select::ids),
        _ => Err(SelectError::TooManyIds),
    }
}

fn one_id(text: &str) -> Option<Vec<&str>> {
    let literal = after_id(text)?.strip_prefix("==")?;
    let (id, rest) = quoted(literal)?;
    rest.is_empty().then(|| vec![id])
}

fn several_ids(text: &str) -> Option<Vec<&str>> {
    let list = after_id(text)?.strip_prefix("in")?.trim_start();
    let mut rest = list.strip_prefix('[')?.trim_start();
    let mut ids = Vec::new();
    while let Some((id, tail)) = quoted(rest) {
        ids.push(id);
        rest = match tail.strip_prefix(',') {
            Some(next) => next,
            None => tail,
        };
        if rest == tail {
            break;
        }
    }
    (rest.trim() == "]").then_some(ids)
}

/// What follows `device.id`.
fn after_id(text: &str) -> Option<&str> {
    text.trim().strip_prefix("device.id").map(str::trim_start)
}

/// A literal without escapes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (literal, rest) = text[1..].split_once(quote)?;
    (!literal.contains('\\')).then_some((literal, rest.trim_start()))
}

fn device_id(id: &str) -> Result<DeviceId, SelectError> {
    let printable = id.bytes().all(|byte| byte.is_ascii_graphic());
    match id.len() {
        1..=DEVICE_ID_BYTES_MAX if printable => Ok(DeviceId::new(id)),
        _ => Err(SelectError::Id(shortened(id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_id() {
        for (text, ids) in [
            ("device.id == 'GPU-1'", vec!["GPU-1"]),
            (
                "  device.id==\"pci-0000:65:00.0\" ",
                vec!["pci-0000:65:00.0"],
            ),
            ("device.id in ['a', \"b\"]", vec!["a", "b"]),
            ("device.id in['a','b',]", vec!["a", "b"]),
        ] {
            let ids = ids.into_iter().map(DeviceId::new).collect();
            assert_eq!(parse_select(text), Ok(Select::ids(ids)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        use SelectError::{Id, NoIds, TooLong, TooManyIds, Unsupported};
        let many = format!("device.id in [{}]", "'x',".repeat(SELECT_IDS_MAX + 1));
        for (text, error) in [
            ("", Unsupported(String::new())),
            (
                "device.name == 'x'",
                Unsupported("device.name == 'x'".to_owned()),
            ),
            (
                "device.id != 'x'",
                Unsupported("device.id != 'x'".to_owned()),
            ),
            ("device.id == 'x", Unsupported("device.id == 'x".to_owned())),
            (
                "device.id == 'x' || true",
                Unsupported("device.id == 'x' || true".to_owned()),
            ),
            (
                "device.id in ['x' 'y']",
                Unsupported("device.id in ['x' 'y']".to_owned()),
            ),
            (
                "device.id in ['x'] y",
                Unsupported("device.id in ['x'] y".to_owned()),
            ),
            ("device.id in []", NoIds),
            ("device.id == ''", Id(String::new())),
            ("device.id == 'a b'", Id("a b".to_owned())),
            (&many, TooManyIds),
            (&" ".repeat(SELECT_BYTES_MAX + 1), TooLong),
        ] {
            assert_eq!(parse_select(text), Err(error), "{text}");
        }
        assert!(parse_select("device.id == 'x\\'y'").is_err());
    }
}
