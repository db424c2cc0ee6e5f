//! What a coordinator and its clients ask of the machine that they run on: sockets, clocks, threads, random numbers.
//!
//! One seam, so that a simulation can be the machine: with the feature `simulated` the same calls lead to turmoil's network
//! and clock, to one thread, and to numbers that follow a seed. No build that supervises anything has the feature;
//! `tests/tidy/layers.rs` and a constant in the `outlast` binary see to that.

mod clock;
pub mod net;
pub mod random;
mod threads;

pub use clock::{boot_now, wall_now};
pub use threads::{Threads, blocking, every};

/// Whether this build is a simulation's.
pub const IS_SIMULATED: bool = cfg!(feature = "simulated");
