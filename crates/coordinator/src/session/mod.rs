//! Agents: one task a session. Desired state flows down from this coordinator's own applied state, stamped with its
//! index; heartbeats, observations and checkpoints flow up.

mod checkpoints;
mod desired;
mod look;
mod observer;
mod orders;
mod registering;
mod service;
mod stream;

pub(crate) use service::NodeHandler;
