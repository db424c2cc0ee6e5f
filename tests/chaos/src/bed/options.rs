//! What every run says about its bed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Namespaces where this machine lets us make them, else loopback
    Auto,
    /// Each daemon in a network namespace and on a disk of its own; needs root
    Namespaces,
    /// Plain processes; fewer faults
    Loopback,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct BedArgs {
    /// Three or five
    #[arg(long, default_value_t = 3)]
    pub(crate) coordinators: usize,
    #[arg(long, default_value_t = 4)]
    pub(crate) agents: usize,
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) form: Form,
    /// The `outlast` binary [default: the one beside this program]
    #[arg(long)]
    pub(crate) exe: Option<PathBuf>,
    /// Where history, report and logs go [default: a folder below target/chaos, named after the seed]
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// The same seed is the same schedule [default: from the clock]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}
