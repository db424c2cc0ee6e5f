//! The Rust SDK for programs that run as Outlast workers: who am I, where do I go on from, is a checkpoint due, here is
//! one.
//!
//! The SDK is blocking, because training loops are. One thread of its own talks to the node's agent over the Unix socket
//! named by `OUTLAST_SOCKET`. Nothing that the agent does can stop the training: [`Worker::report`] never waits, and the
//! calls that do wait have deadlines and go on through a restart of the agent.
//!
//! ```no_run
//! use std::time::Duration;
//! use outlast_worker::Worker;
//!
//! # fn load(_: &std::path::Path) {}
//! # fn train(_: u64) -> f64 { 0.0 }
//! # fn write_state(_: &std::path::Path) -> std::io::Result<()> { Ok(()) }
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // `None`: nobody supervises this run, and the program goes on without.
//!     let worker = Worker::connect()?;
//!     let mut step = 0;
//!     if let Some(worker) = &worker
//!         && let Some(dir) = worker.restore_dir()
//!     {
//!         load(dir);
//!         step = worker.restore_step();
//!     }
//!     while step < 1000 {
//!         step += 1;
//!         let loss = train(step);
//!         let Some(worker) = &worker else { continue };
//!         // An error here means that this attempt is over: leave at once, somebody else goes on.
//!         let wanted = worker.report(step, &[("loss", loss)])?;
//!         if wanted.checkpoint_due || wanted.stop {
//!             let dir = worker.checkpoint_dir().join(format!("step-{step}"));
//!             write_state(&dir)?;
//!             let saved = worker.save(step, &dir)?;
//!             if wanted.stop {
//!                 worker.wait_sealed(&saved.checkpoint, Duration::from_secs(60))?;
//!                 break;
//!             }
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Where the state is at hand as bytes, [`Worker::save_parts`] takes it from memory: the training stops for one copy only,
//! and what was copied no longer needs the process that it came from.
//!
//! In a gang the ranks must save at the same step: let one rank's `checkpoint_due` count for all, through the messages
//! that they exchange anyway.

mod error;
mod link;
mod reporter;
mod signals;
mod staging;
mod wishes;
mod worker;

pub use error::{CallError, ConnectError, ReportError, SaveError, WaitError};
pub use outlast_staging::PartsError;
pub use outlast_types::{AttemptId, Digest};
pub use staging::Staged;
pub use wishes::Report;
pub use worker::{METRICS_MAX, SOCKET_VARIABLE, Saved, SealOutcome, Worker};
