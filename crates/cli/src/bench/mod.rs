//! `outlast bench`: what this build does on this machine, from repeated runs with real processes. Reported, never
//! asserted: timings depend on the machine.

mod checkpoint;
mod control;
mod events;
mod figures;

use std::process::ExitCode;

use anyhow::Result;

use crate::local;
use crate::problem::Problem;

/// Measure this build on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Detection and recovery times, submissions a second, commit latency: three coordinators and four agents.
    Control(control::ControlArgs),
    /// What checkpoints cost, beside plain copies, writes and reads of the same bytes: stall, hashing, copies, restore, seals.
    Checkpoint(checkpoint::CheckpointArgs),
    /// The program of the job that `bench checkpoint` measures
    #[command(hide = true)]
    Worker(checkpoint::WorkerArgs),
}

impl BenchArgs {
    /// Fails when the cluster does not come up, or does not recover.
    pub(crate) fn run(self) -> std::result::Result<ExitCode, Problem> {
        let outcome = match self.what {
            What::Control(args) => until_interrupted(control::run(args)),
            What::Checkpoint(args) => until_interrupted(checkpoint::run(args)),
            What::Worker(args) => checkpoint::run_worker(&args),
        };
        outcome.map_err(|error| local::problem("the benchmark could not go on", &error))
    }
}

fn until_interrupted(bench: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    local::block_on(async {
        tokio::select! {
            outcome = bench => outcome,
            interrupted = local::interrupted() => interrupted.map(|()| crate::problem::Exit::Interrupted.into()),
        }
    })
}
