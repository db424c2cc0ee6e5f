//! Chaos on real processes: a cluster on this machine, clients and workers that write down all that they see, faults by a
//! seeded schedule, and checkers that read the history afterwards. See `tests/chaos/README.md`.

mod bed;
mod check;
mod clients;
mod entry;
mod history;
mod nemesis;
mod report;
mod rng;
mod run;
mod soak;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "outlast-chaos", about = "Faults on a cluster of real processes, and what they must not do")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Faults by a seeded schedule, then healing, then the checkers
    Run(run::RunArgs),
    /// A busy machine and a jittered network: nobody healthy may be declared lost
    Soak(soak::SoakArgs),
    /// The program of the jobs that a run submits
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(args) => entry::enter(&args.bed.clone(), |tag| run::run(&args, tag)),
        Command::Soak(args) => entry::enter(&args.bed.clone(), |tag| soak::run(&args, tag)),
        Command::Worker(args) => return worker::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(err) => {
            eprintln!("chaos: {err:#}");
            ExitCode::FAILURE
        }
    }
}
