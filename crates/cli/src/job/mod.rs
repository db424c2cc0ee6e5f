//! `outlast job`: one file a verb.

mod bundle;
mod cancel;
mod events;
mod explain;
mod file;
mod follow;
mod list;
mod logs;
mod printer;
mod run;
mod show;
mod submit;
mod wait;
mod workdir;

use std::process::ExitCode;

use clap::Subcommand;

use crate::connection::Connection;
use crate::problem::Problem;

#[derive(Debug, clap::Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Submit a job file
    Submit(submit::Submit),
    /// Submit a command and follow it
    Run(run::Run),
    /// List jobs, newest first
    List(list::List),
    /// Show one job: its attempts, workers and checkpoints
    Show(show::Show),
    /// Print what the workers wrote
    Logs(logs::Logs),
    /// Wait for a job's end; exit code 1 when it did not succeed
    Wait(wait::Wait),
    /// Stop a job for good
    Cancel(cancel::Cancel),
    /// Tell what happened to a job, in order, and what it waits for
    Explain(explain::Explain),
    /// Print what happens, to one job or to the whole cluster
    Events(events::Events),
}

impl JobArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let connection = &self.connection;
        match self.verb {
            Verb::Submit(verb) => connection.run(|session| verb.run(session)),
            Verb::Run(verb) => connection.run(|session| verb.run(session)),
            Verb::List(verb) => connection.run(|session| verb.run(session)),
            Verb::Show(verb) => connection.run(|session| verb.run(session)),
            Verb::Logs(verb) => connection.run(|session| verb.run(session)),
            Verb::Wait(verb) => connection.run(|session| verb.run(session)),
            Verb::Cancel(verb) => connection.run(|session| verb.run(session)),
            Verb::Explain(verb) => connection.run(|session| verb.run(session)),
            Verb::Events(verb) => connection.run(|session| verb.run(session)),
        }
    }
}
