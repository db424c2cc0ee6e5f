//! Everything that needs more than one crate: the rules of the source tree itself, and clusters of real processes.

mod cluster;
mod tidy;
