//! Processes of workers: keepers, process groups, cgroups, pipes, signals and the reasons why they end.
//!
//! A *keeper* is a tiny process per worker (the same binary) that owns the worker's pipes, its cgroup and its deadline,
//! and survives a restart of the agent. The agent never waits for a worker itself; it asks the keeper:
//!
//! ```text
//!  agent ──Keeper::spawn──► keeper ──fork, exec──► worker (own process group, own cgroup)
//!    │  keeper.sock (JSON lines)│ stdout, stderr ──► log/NNNNNN.seg
//!    │◄────── exit record ──────┘ end ──► exit.json (fsynced before anybody is told)
//! ```
//! Blocking throughout: the keeper has two threads and no runtime. Of its modules only `keeper::launch` may use `unsafe`.

pub mod cgroup;
mod clock;
mod files;
mod handle;
pub mod keeper;
pub mod log;
mod procfs;
mod record;
mod spec;
mod wire;

pub use cgroup::{CgroupLimits, CgroupPlan, Cgroups};
pub use clock::{boot_id, boot_now, wall_now};
pub use handle::{AdoptError, Adopted, CallError, Keeper, KeeperGone, SpawnError};
pub use log::{LogLine, LogReader, LogStream};
pub use procfs::process_start_time;
pub use record::{ExitFile, LeftProcess};
pub use spec::KeeperSpec;
pub use wire::KeeperStatus;
