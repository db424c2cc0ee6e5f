//! A cluster of real processes on this machine: coordinators and agents, each with a folder and a port of its own,
//! to be killed, frozen and restarted. The demo, the benchmarks and the cluster tests share it.
//!
//! It owns the processes that it starts, and those that these start: dropping it ends them all.

mod cluster;
mod process;
mod tree;

pub use cluster::{Builder, LocalCluster, Place};
pub use process::Daemon;
pub use tree::{Found, find_processes};
