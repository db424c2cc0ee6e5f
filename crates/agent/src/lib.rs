//! A node's daemon: makes running workers match what the cluster wants, and says what it sees.
//!
//! ```text
//!  coordinator ◄──session──► agent_loop ──► worker::start ──► keeper ──► worker
//!                              │   ▲ events                               │
//!      peers ◄──── peer ───────┘   └────── worker::api (Unix socket) ◄────┘
//! ```
//! The agent never writes cluster state: it acts on desired state and reports observations. Pure: `reconcile`,
//! `observations`, `due`, `worker::env`, and the lease of `outlast_control`. Everything else carries bytes to and from
//! one loop. No globals: several agents may live in one process.

mod adopt;
mod agent;
mod agent_loop;
mod assigned;
mod checkpoints;
mod config;
mod context;
mod coordinators;
mod due;
mod event;
mod folder;
mod health;
mod heart;
mod metrics;
mod observations;
mod pauses;
mod peer;
mod reconcile;
mod resources;
mod sealed;
mod session;
mod transfer;
mod upkeep;
mod worker;

pub use agent::{Agent, RunningAgent, StartError};
pub use agent_loop::AgentError;
pub use config::{AgentConfig, ConfigError, DEFAULT_PORT, ResourceOverrides};
pub use event::StopWorkers;
pub use folder::FolderError;
pub use outlast_blobs::objects::StoreOptions;
