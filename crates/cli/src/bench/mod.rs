//! `outlast bench`: what this build does on this machine, from repeated runs with real processes. Reported, never
//! asserted: timings depend on the machine.

mod control;
mod events;
mod figures;

use std::process::ExitCode;

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
}

impl BenchArgs {
    /// Fails when the cluster does not come up, or does not recover.
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let What::Control(args) = self.what;
        let outcome = local::block_on(async {
            tokio::select! {
                outcome = control::run(args) => outcome,
                interrupted = local::interrupted() => interrupted.map(|()| crate::problem::Exit::Interrupted.into()),
            }
        });
        outcome.map_err(|error| local::problem("the benchmark could not go on", &error))
    }
}
