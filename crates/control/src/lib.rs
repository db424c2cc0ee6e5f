//! The control logic, pure: [`state`] is what the cluster agrees on and how a command changes it, [`plan`] decides what
//! should happen next, [`lease`] holds both sides' lease timers.
//!
//! No I/O, no clock, no randomness: time and ids come in as data.

pub mod lease;
pub mod plan;
pub mod planted;
pub mod state;
