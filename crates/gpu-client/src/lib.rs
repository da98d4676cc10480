//! A typed client of the broker's HTTP API, over TCP or its Unix socket.
//!
//! Owns finding the broker, keeping a connection, repeating what may be repeated, heartbeats and the event
//! stream. Must never know the core: what it says and hears are the types of `gpu-api`.
//!
//! ```no_run
//! # async fn example() -> Result<(), gpu_client::ClientError> {
//! use gpu_client::{Client, IdempotencyKey};
//!
//! let client = Client::discover(None, None).expect("a valid address");
//! let lease = client.acquire(&Default::default(), &IdempotencyKey::random()).await?;
//! println!("{} holds {:?}", lease.id, lease.allocations);
//! client.release(&lease.id, lease.secret.as_deref()).await?;
//! # Ok(())
//! # }
//! ```

mod client;
mod connection;
mod endpoint;
mod error;
mod events;
mod heartbeat;

pub use client::{Client, DiscoverError, IdempotencyKey, LoadOptions, TokenError};
pub use endpoint::{Endpoint, ParseEndpointError};
pub use error::ClientError;
pub use events::EventStream;
pub use heartbeat::{Gone, Heartbeat, Pulse};
