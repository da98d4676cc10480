//! What would become of a request.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::lease::Waiting;
use crate::problem::Problem;
use crate::request::AcquireRequest;
use crate::text::Text;

/// Body of `POST /v1/policy/explain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainRequest {
    /// The request, as it would be sent to `POST /v1/leases`.
    pub request: AcquireRequest,
    /// As if it were then: `18:05` is the next time that the policy's clock shows it. Absent: now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "18:05")]
    pub at: Option<ExplainAt>,
}

/// A time to explain a request for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text<40>", into = "String")]
pub enum ExplainAt {
    /// The next time that the clock of the policy's timezone shows this.
    Clock {
        /// 0 to 23.
        hour: u8,
        /// 0 to 59.
        minute: u8,
    },
    /// An RFC 3339 timestamp, not looked at yet.
    Time(String),
}

/// Answer of `POST /v1/policy/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The class that it would be in.
    pub class: String,
    /// The priority of the class, or that a rule set.
    pub priority: i64,
    /// The tenant that it would belong to, as `name` or `name/user`.
    pub tenant: Option<String>,
    /// Longest time between heartbeats, in milliseconds.
    pub ttl_ms: u64,
    /// Longest hold, in milliseconds, if there is one.
    pub max_hold_ms: Option<u64>,
    /// The rules that apply, in the order in which they do.
    pub rules: Vec<RuleEffect>,
    /// What would become of it.
    pub outcome: ExplainOutcome,
    /// The devices that it would be granted.
    pub devices: Vec<String>,
    /// Why it would wait.
    pub waiting: Option<Waiting>,
    /// Why it would be refused, or cannot be granted before the broker has seen its devices.
    pub denial: Option<Box<Problem>>,
    /// The time that it was explained for.
    pub at: String,
}

/// What would become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExplainOutcome {
    /// It would be granted at once.
    Granted,
    /// It would be refused, however long it waits.
    Refused,
    /// It cannot be granted now, and would wait if it does.
    Waits,
}

/// A rule that applies, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleEffect {
    /// The rule.
    pub rule: String,
    /// What it does, such as `denies: too big` or `sets class = batch`.
    pub effect: String,
}

impl FromStr for ExplainAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((hour, minute)) = clock(text) {
            return Ok(Self::Clock { hour, minute });
        }
        match text.len() <= 40 && text.contains('T') {
            true => Ok(Self::Time(text.to_owned())),
            false => Err(format!(
                "`{}` is no time: write `18:05`, or `2026-01-31T18:05:00Z`",
                crate::bytes::shortened(text)
            )),
        }
    }
}

/// Hour and minute of `18:05`.
fn clock(text: &str) -> Option<(u8, u8)> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str, end: u8| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let number: u8 = digits.parse().ok()?;
        (plain && number < end).then_some(number)
    };
    let minute = (minute.len() == 2).then_some(minute)?;
    Some((number(hour, 24)?, number(minute, 60)?))
}

impl TryFrom<Text<40>> for ExplainAt {
    type Error = String;

    fn try_from(text: Text<40>) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ExplainAt> for String {
    fn from(at: ExplainAt) -> Self {
        match at {
            ExplainAt::Clock { hour, minute } => format!("{hour:02}:{minute:02}"),
            ExplainAt::Time(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_clock_or_a_timestamp() {
        let clock = |hour, minute| Ok(ExplainAt::Clock { hour, minute });
        let time = "2026-01-31T18:05:00Z";
        for (text, expected) in [
            ("18:05", clock(18, 5)),
            ("9:30", clock(9, 30)),
            ("00:00", clock(0, 0)),
            (time, Ok(ExplainAt::Time(time.to_owned()))),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for text in ["24:00", "18:60", "18:5", "18", "+1:05", "", "later"] {
            assert!(text.parse::<ExplainAt>().is_err(), "{text}");
        }
    }
}
