//! Clusters of real processes, driven through the command line as an operator would.

mod bad_input;
mod checkpoint_verbs;
mod checkpoints;
mod cli;
mod disk;
mod exclusive;
mod failpoints;
mod faults;
mod gpu;
mod harness;
mod kill;
mod membership;
mod pause;
mod recover;
mod saver;
mod storm;
mod uploads;
