//! `outlast cluster`.

mod init;
mod remove;
mod status;
mod upgrade;

use std::process::ExitCode;

use clap::Subcommand;

use crate::connection::Connection;
use crate::problem::Problem;

const AFTER_HELP: &str = "\
A cluster grows by a coordinator that joins it: start one with an empty folder and
  outlast coordinator --data-dir DIR --listen HOST:PORT --join MEMBER:7400
It gets an id, copies the log, and votes as soon as it has caught up; `cluster status` shows how far
it is.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show who leads, who follows, and what somebody should look at
    Status(status::Status),
    /// Make the coordinator that is named (and no other) the first member of a new cluster
    Init(init::Init),
    /// Remove a coordinator for good; its id never comes back
    Remove(remove::Remove),
    /// Let the cluster use what every member's build knows, once all are upgraded
    Upgrade(upgrade::Upgrade),
}

impl ClusterArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let connection = &self.connection;
        match self.verb {
            Verb::Status(verb) => connection.run(|session| verb.run(session)),
            Verb::Init(verb) => connection.run(|session| verb.run(session)),
            Verb::Remove(verb) => connection.run(|session| verb.run(session)),
            Verb::Upgrade(verb) => connection.run(|session| verb.run(session)),
        }
    }
}
