//! The typed client of the operator's API: it asks every coordinator it knows, follows hints, retries the same request
//! under the same request id, and goes on reading logs and events where it was when a coordinator dies.
//!
//! State: which coordinators are known and which one answered last; in memory only.

mod backoff;
mod backup;
mod budget;
mod bundle;
mod calls;
pub mod channel;
mod client;
mod error;
mod events;
mod identity;
mod logs;
mod pool;
mod race;
mod shard;

pub use backup::BackupStream;
pub use bundle::BundleFile;
pub use channel::{AddressError, connect_lazy as channel, parse_address};
pub use client::{Client, DEFAULT_COORDINATOR, DEFAULT_TIMEOUT};
pub use error::{ClientError, Tried};
pub use events::EventStream;
pub use identity::new_request_id;
pub use logs::LogStream;
pub use shard::ShardStream;
