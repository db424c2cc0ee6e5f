//! `outlast cluster`.

mod backup;
mod init;
mod rebuilt;
mod recover;
mod remains;
mod remove;
mod restore;
mod status;
mod upgrade;
mod verify;

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
    /// Write all that the coordinators know to a file, while they run
    Backup(backup::Backup),
    /// Make the first coordinator of a new cluster, when all old ones are lost
    Restore(restore::Restore),
    /// Make a new cluster of one survivor, when the majority is lost for good
    Recover(recover::Recover),
    /// Check the folder of a coordinator that is stopped; exit code 1 where something is damaged
    Verify(verify::Verify),
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
            Verb::Backup(verb) => connection.run(|session| verb.run(session)),
            Verb::Restore(verb) => verb.run(connection.format()),
            Verb::Recover(verb) => verb.run(connection.format()),
            Verb::Verify(verb) => verb.run(connection.format()),
            Verb::Upgrade(verb) => connection.run(|session| verb.run(session)),
        }
    }
}

/// `host:port`; the host may be a name.
fn address(text: &str) -> Result<String, String> {
    let is_one = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if is_one { Ok(text.to_owned()) } else { Err("write host:port".to_owned()) }
}
