//! The broker from outside: the real loop on its own thread, with a clock that the test moves.
#![expect(clippy::unwrap_used, reason = "a test fails where its own steps fail")]

mod attribution;
mod commits;
mod events;
mod limits;
mod processes;
mod reload;
mod reload_attempts;
mod reload_breaker;
mod reload_gate;
mod reload_load;
mod reload_overrides;
mod reload_rollback;
mod restart;
mod store;
mod time;
mod turns;
mod usage;
mod waits;
mod world;
