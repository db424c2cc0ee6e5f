//! The daemons: `coordinator`, `agent`, and `dev`, which is both.

mod agent;
mod check;
mod coordinator;
mod daemon;
mod dev;
mod keys;
mod layers;

pub(crate) use agent::AgentArgs;
pub(crate) use check::{CheckArgs, opens_in_child};
pub(crate) use coordinator::CoordinatorArgs;
pub(crate) use dev::DevArgs;
