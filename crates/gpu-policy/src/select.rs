//! Which devices a request is for: devices by id, or an expression over a device.

use std::fmt;

use gpu_lease::{DeviceId, Select};

use crate::cel::{Expression, Fault, Scope, TEXT_BYTES_MAX};
use crate::units::shortened;

/// A selection longer than this many bytes is refused.
pub const SELECT_BYTES_MAX: usize = TEXT_BYTES_MAX;

/// A selection may name this many devices.
pub const SELECT_IDS_MAX: usize = 64;

const DEVICE_ID_BYTES_MAX: usize = 128;

/// Text that is no selection of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectError {
    /// A lowercase fragment that names the thing in backticks.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
    /// Where in the text, counted in characters from 1.
    pub column: usize,
}

/// The devices that `text` selects: by id (`device.id == 'a'`, `device.id in ['a', "b"]`), or by an expression
/// over `device` that [`gpu_lease::Rules::selects`] evaluates.
///
/// # Errors
/// For a text that is none of them, that is longer than [`SELECT_BYTES_MAX`], or that may take too long.
pub fn parse_select(text: &str) -> Result<Select, SelectError> {
    let ids = match text.len() {
        0..=SELECT_BYTES_MAX => one_id(text).or_else(|| several_ids(text)),
        _ => None,
    };
    match ids {
        Some(ids) => by_id(text, &ids),
        None => by_filter(text),
    }
}

fn by_id(text: &str, ids: &[&str]) -> Result<Select, SelectError> {
    if ids.is_empty() {
        return Err(SelectError::new("the selection names no device"));
    }
    if ids.len() > SELECT_IDS_MAX {
        let message = format!("the selection names more than {SELECT_IDS_MAX} devices");
        return Err(SelectError::new(message));
    }
    match ids.iter().find(|id| !is_device_id(id)) {
        Some(id) => {
            let place = text
                .find(&format!("{id}'"))
                .or_else(|| text.find(&format!("{id}\"")));
            let error = SelectError::new(format!("`{}` is no device id", shortened(id)));
            Err(error.at(text, place.unwrap_or_default()))
        }
        None => Ok(Select::ids(
            ids.iter().map(|id| DeviceId::new(id)).collect(),
        )),
    }
}

fn by_filter(text: &str) -> Result<Select, SelectError> {
    let filter = Expression::compile(text, Scope::Select);
    filter.map_err(|fault| SelectError::of(text, fault))?;
    Ok(Select {
        ids: None,
        filters: vec![text.to_owned()],
    })
}

impl SelectError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            column: 1,
        }
    }

    fn of(text: &str, fault: Fault) -> Self {
        let Fault {
            message,
            hint,
            span,
        } = fault;
        let error = Self {
            hint,
            ..Self::new(message)
        };
        error.at(text, span.map_or(0, |span| span.start))
    }

    /// At this byte of `text`.
    fn at(self, text: &str, byte: usize) -> Self {
        let before = text.char_indices().take_while(|(place, _)| *place < byte);
        let column = before.count() + 1;
        Self { column, ..self }
    }
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (column {})", self.message, self.column)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SelectError {}

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

fn is_device_id(id: &str) -> bool {
    let printable = id.bytes().all(|byte| byte.is_ascii_graphic());
    printable && (1..=DEVICE_ID_BYTES_MAX).contains(&id.len())
}
