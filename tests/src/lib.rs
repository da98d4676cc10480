//! What end-to-end tests are written with: a host in a temporary directory, the real program on it, and ways
//! to talk to it that are as good or as bad as real clients'.
//!
//! Nothing here sleeps and hopes: whatever must come about is asked for until it has, with a deadline.
//! Whatever is started is ended when its value is dropped.

mod broker;
mod browser;
mod dice;
mod disk;
mod events;
pub mod evidence;
mod host;
mod http;
mod lease_history;
mod lease_table;
mod linear;
mod patience;
mod process;

pub use broker::{Broker, problem};
pub use browser::{Browser, Tab};
pub use dice::{Dice, number_from_env};
pub use disk::SmallDisk;
pub use events::Events;
pub use host::{Host, POLICY, program};
pub use http::{Address, Answer, Attempt, Conversation, Request};
pub use lease_history::{Asked, History, Life, Wanted};
pub use lease_table::{Amount, End, Grant, LeaseTable, Op, Phase, Ret, Seen};
pub use linear::{Call, Calls, Refuted, linearize};
pub use patience::{SOON, eventually, for_as_long};
pub use process::{Process, Ran, is_alive};

/// Bytes of `number` GiB.
pub const fn gib(number: u64) -> u64 {
    number << 30
}
