//! What was: the history of events, and who held what for how long.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::event::Event;
use crate::span::Span;
use crate::text::Text;

/// Most events of one answer.
pub const EVENTS_PER_ANSWER_MAX: u32 = 1000;

/// Query of `GET /v1/history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Of this lease only.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Text<64>>,
    /// Of this device only, or of leases that hold something of it.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Text<128>>,
    /// Of leases of this user only, or done by it.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<128>>,
    /// Since `2h` ago, or since an RFC 3339 time.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// The `next` of the page before, or the id of an event.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Text<64>>,
    /// Events of this answer: 1 to 1000, and 1000 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Answer of `GET /v1/history`: events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// What was found on the way to `next`; that can be nothing.
    pub events: Vec<Event>,
    /// What `after` takes for the next page; null at the end of the history.
    pub next: Option<String>,
    /// The place that was asked for is gone: the page begins at the oldest event kept.
    pub reset: bool,
}

/// Query of `GET /v1/usage`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// What the rows are for: some of `user`, `tenant` and `device`, with commas; `user` if absent.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<UsageBy>,
    /// Since `30d` ago, or since an RFC 3339 time, from the beginning of that hour; 30 days if absent. 35 days
    /// are kept.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
}

/// Answer of `GET /v1/usage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// The beginning of the first hour that is counted.
    pub since: String,
    /// Until when; what is held now is counted up to here.
    pub until: String,
    /// What the rows are for, as it was asked for: some of `user`, `tenant` and `device`.
    #[schema(value_type = String)]
    pub by: UsageBy,
    /// Who held most for longest first.
    pub rows: Vec<UsageSum>,
}

/// What was held, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageSum {
    /// The user of the holders; null unless asked for. `(other)` where there were too many in an hour.
    pub user: Option<String>,
    /// Their tenant; null unless asked for, and for who has none. `(other)` as for users.
    pub tenant: Option<String>,
    /// The device; null unless asked for.
    pub device: Option<String>,
    /// For how long devices were held; two leases on one device, and two devices of one lease, count twice.
    pub held_ms: u64,
    /// Bytes granted times hours.
    pub byte_hours: u64,
}

/// A point in time that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text<40>", into = "String")]
pub enum Since {
    /// This long ago.
    Ago(Span),
    /// An RFC 3339 timestamp, not looked at yet.
    At(String),
}

/// What rows of usage are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text<40>", into = "String")]
pub struct UsageBy {
    /// A row for each user.
    pub user: bool,
    /// A row for each tenant.
    pub tenant: bool,
    /// A row for each device.
    pub device: bool,
}

impl Default for UsageBy {
    fn default() -> Self {
        Self {
            user: true,
            tenant: false,
            device: false,
        }
    }
}

impl FromStr for UsageBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut by = Self {
            user: false,
            ..Self::default()
        };
        for word in text.split(',') {
            let field = match word.trim() {
                "user" => &mut by.user,
                "tenant" => &mut by.tenant,
                "device" => &mut by.device,
                _ => {
                    let word = crate::bytes::shortened(word);
                    return Err(format!("`{word}` is none of `user`, `tenant` and `device`"));
                }
            };
            *field = true;
        }
        Ok(by)
    }
}

impl fmt::Display for UsageBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.user, "user"),
            (self.tenant, "tenant"),
            (self.device, "device"),
        ];
        let words = words.iter().filter(|(is_asked, _)| *is_asked);
        let words: Vec<&str> = words.map(|(_, word)| *word).collect();
        f.write_str(&words.join(","))
    }
}

impl TryFrom<Text<40>> for UsageBy {
    type Error = String;

    fn try_from(text: Text<40>) -> Result<Self, String> {
        text.parse()
    }
}

impl From<UsageBy> for String {
    fn from(by: UsageBy) -> Self {
        by.to_string()
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Span>() {
            Ok(span) => Ok(Self::Ago(span)),
            Err(_) if text.len() <= 40 && text.contains('T') => Ok(Self::At(text.to_owned())),
            Err(_) => Err(format!(
                "`{}` is no time: write `2h`, `30d`, or `2026-01-31T18:00:00Z`",
                crate::bytes::shortened(text)
            )),
        }
    }
}

impl TryFrom<Text<40>> for Since {
    type Error = String;

    fn try_from(text: Text<40>) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Since> for String {
    fn from(since: Since) -> Self {
        match since {
            Since::Ago(span) => format!("{}ms", span.as_ms()),
            Since::At(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rows_are_for_is_a_list() {
        let by: UsageBy = "device, user".parse().expect("a list");
        assert!(by.user && by.device && !by.tenant);
        assert_eq!(by.to_string(), "user,device");
        assert_eq!(by.to_string().parse(), Ok(by));
        for text in ["", "user,", "host", "user device"] {
            assert!(text.parse::<UsageBy>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_that_is_over_is_a_length_or_a_timestamp() {
        assert_eq!("30d".parse(), Ok(Since::Ago(Span::from_secs(30 * 86_400))));
        let at = "2026-01-31T18:00:00Z";
        assert_eq!(at.parse(), Ok(Since::At(at.to_owned())));
        let error = "yesterday".parse::<Since>().expect_err("no time");
        assert!(error.contains("`yesterday` is no time"), "{error}");
    }
}
