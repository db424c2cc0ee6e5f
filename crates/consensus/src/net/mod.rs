//! Raft between coordinators: tonic on both sides, two channels to each peer.

mod client;
mod convert;
mod handler;
mod peer;
mod send_snapshot;

pub(crate) use client::Network;
pub use handler::RaftHandler;
pub(crate) use peer::Peers;

/// Far above one AppendEntries request (2 MiB of entries, or one of 1 MiB commands), far below what memory bears.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
