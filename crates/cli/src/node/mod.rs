//! `outlast node`.

mod change;
mod label;
mod list;
mod show;

use std::process::ExitCode;

use clap::Subcommand;
use outlast_proto::control::v1::Node;

use crate::connection::Connection;
use crate::problem::Problem;

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List nodes
    List(list::List),
    /// Show one node
    Show(show::Show),
    /// Place nothing new on a node; what runs there goes on
    Cordon(change::Cordon),
    /// Place work on it again; also ends a drain and a quarantine
    Uncordon(change::Uncordon),
    /// Take a checkpoint of what runs on a node and move it elsewhere
    Drain(change::Drain),
    /// Set and remove labels
    Label(label::Label),
}

impl NodeArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let connection = &self.connection;
        match self.verb {
            Verb::List(verb) => connection.run(|session| verb.run(session)),
            Verb::Show(verb) => connection.run(|session| verb.run(session)),
            Verb::Cordon(verb) => connection.run(|session| verb.run(session)),
            Verb::Uncordon(verb) => connection.run(|session| verb.run(session)),
            Verb::Drain(verb) => connection.run(|session| verb.run(session)),
            Verb::Label(verb) => connection.run(|session| verb.run(session)),
        }
    }
}

/// What is observed, then what operators and policy want.
fn condition(node: &Node) -> String {
    let wanted = [
        (node.cordoned, "cordoned"),
        (node.draining, "draining"),
        (!node.quarantined.is_empty(), "quarantined"),
    ];
    let wanted = wanted.iter().filter(|(on, _)| *on).map(|(_, word)| format!(",{word}"));
    std::iter::once(node.condition.clone()).chain(wanted).collect()
}
