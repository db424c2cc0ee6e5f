//! Tests of the whole crate: storage conformance, crashes of the disk, folders, clusters on loopback.

mod cluster;
mod conformance;
mod crash;
mod folder;
mod hung_disk;
mod kill_nine;
mod membership;
mod model;
mod power_cut;
mod rebuild;
mod slow_disk;
mod snapshots;
