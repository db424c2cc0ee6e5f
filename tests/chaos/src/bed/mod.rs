//! The test bed: addresses, disks and processes of a cluster, and what can be done to each.
//!
//! Owns everything that is outside the run's folder: namespaces, mounts, loop devices. Each thing goes when it is dropped,
//! and what a killed run left goes when the next one starts.

mod cluster;
mod disk;
mod filter;
mod leftovers;
mod network;
mod options;
mod shell;

pub(crate) use cluster::Bed;
pub(crate) use disk::{Disk, flip_bits};
pub(crate) use leftovers::{remove_leftovers, sweep};
pub(crate) use network::Network;
pub(crate) use options::{BedArgs, Form};
pub(crate) use shell::run;
