//! The faults: which there are, when they come (from the seed alone), and how each is done and healed.

mod agents;
mod carry;
mod coordinators;
mod kind;
mod network;
mod plan;

pub(crate) use carry::Nemeses;
pub(crate) use kind::{Kind, Needs, choose};
pub(crate) use plan::{Planned, plan};
