//! Between coordinators: what a follower passes on to the leader ([`heartbeats`] and the callers of the service), and
//! what the leader answers ([`service`]).

mod heartbeats;
mod service;

pub(crate) use heartbeats::{HeartbeatRelay, serve_heartbeats};
pub(crate) use service::RelayHandler;
