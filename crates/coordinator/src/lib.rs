//! The coordinator: keeps the cluster's truth together with the other coordinators, answers operators and agents on one
//! port, and, while it leads, decides who is alive and what happens next.
//!
//! | module | owns |
//! |---|---|
//! | `coordinator`, `founder`, `join`, `announce`, `seat` | the way from a data folder to a member of a cluster |
//! | `rebuild`, `remains` | a folder made offline, from a backup, a survivor, or what a bucket and agents tell |
//! | `leader` | the memory of one incarnation: leases, observations, the planner's loop |
//! | `session` | one task for each agent that is connected here |
//! | `relay`, `propose`, `read`, `membership`, `notes` | what goes between followers and the leader |
//! | `control_api`, `http`, `server` | the operators' side |
//!
//! Never here: a decision (that is `outlast_control`), a byte of the log (that is `outlast_consensus`).

mod announce;
mod clock;
mod config;
mod control_api;
mod coordinator;
mod disk;
mod error;
mod events;
mod founder;
mod http;
mod join;
mod leader;
mod limits;
mod member;
mod membership;
mod metrics;
mod notes;
mod peers;
mod propose;
mod read;
mod rebuild;
mod relay;
mod remains;
mod seat;
mod server;
mod session;

pub use config::CoordinatorConfig;
pub use coordinator::{Coordinator, RunningCoordinator};
pub use error::StartError;
pub use rebuild::{recover, restore, restore_remains};
pub use remains::{FindError, find_remains};

const _: () = assert!(
    !outlast_control::planted::IS_IN_THIS_BUILD || outlast_host::IS_SIMULATED,
    "the simulator's planted bugs are in this build: leave the feature `planted` off"
);
