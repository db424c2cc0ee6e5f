//! The control logic under simulation: coordinators, leases, attempts, agents and workers in one thread, under one seed, with
//! a network, disks, clocks and processes that fail. Every invariant is looked at after every event.
//!
//! ```text
//!  real:      ClusterState::apply · plan · Observations · LeaderLeases · AgentLease · the agent's Heart and reconcile
//!  modelled:  the replicated log · sessions and calls · the agent's loop around the real code · disks · processes
//! ```
//! The models follow the shells line by line where something is decided; each file names what it follows. A seed is a run, to
//! the byte. `cargo xtask sim --help` runs many.

mod agent;
mod agent_lease;
mod agent_session;
mod assigned;
mod bytes;
mod checks;
mod client;
mod clock;
mod coord;
mod coverage;
mod decide;
mod desired;
mod event;
mod faults;
mod heal;
#[allow(dead_code, reason = "the agent's own file; not everything that its loop asks is asked here")]
#[path = "../../agent/src/heart.rs"]
mod heart;
mod model_bug;
mod net;
mod office;
mod planner;
mod planted;
mod process;
mod queue;
mod raft;
#[path = "../../agent/src/reconcile.rs"]
mod reconcile;
mod rng;
mod run;
mod saves;
mod scenario;
mod session;
mod shards;
mod streams;
mod trace;
mod upkeep;
mod worker;
mod world;

pub use checks::Violation;
pub use coverage::Coverage;
pub use planted::Bug;
pub use run::{Report, run};
