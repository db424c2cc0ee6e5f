//! `outlast checkpoint`.

mod bar;
mod export;
mod list;
mod newest;
mod pin;
mod put;
mod repair;
mod show;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use crate::connection::Connection;
use crate::problem::Problem;

pub(crate) use list::checkpoints_table;

#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the checkpoints of a job
    List(list::List),
    /// Show one checkpoint: its shards and who holds them
    Show(show::Show),
    /// Ask every holder for its copy; exit code 1 when damage was found that was not repaired
    Verify(verify::Verify),
    /// Write a checkpoint as ordinary folders, one a rank, every byte verified
    Export(export::Export),
    /// Keep a checkpoint whatever the policy says
    Pin(pin::Pin),
    /// Leave a checkpoint to the policy again
    Unpin(pin::Unpin),
    /// Inside a worker: hand a folder over as this rank's part of a checkpoint
    Put(put::Put),
}

impl CheckpointArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let connection = &self.connection;
        match self.verb {
            Verb::List(verb) => connection.run(|session| verb.run(session)),
            Verb::Show(verb) => connection.run(|session| verb.run(session)),
            Verb::Verify(verb) => connection.run(|session| verb.run(session)),
            Verb::Export(verb) => connection.run(|session| verb.run(session)),
            Verb::Pin(verb) => connection.run(|session| verb.run(session)),
            Verb::Unpin(verb) => connection.run(|session| verb.run(session)),
            // Speaks with the node's agent, not with the cluster, and blocks.
            Verb::Put(verb) => verb.run(connection.format()),
        }
    }
}
