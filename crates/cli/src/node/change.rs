//! `outlast node cordon`, `uncordon` and `drain`: the same answer, different dangers.

use outlast_proto::control::v1::Node;

use super::condition;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{confirm, print_one, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct Cordon {
    /// The node's name
    node: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Uncordon {
    /// The node's name
    node: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    /// The node's name
    node: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Cordon {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let node = session.client.cordon_node(&self.node).await?;
        tell(&session, &node)
    }
}

impl Uncordon {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let node = session.client.uncordon_node(&self.node).await?;
        tell(&session, &node)
    }
}

impl Drain {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        if !self.yes {
            let node = session.client.get_node(&self.node).await?;
            let what =
                format!("draining {} stops its {} workers, to go on elsewhere", node.id, node.workers.len());
            confirm(false, &what)?;
        }
        let node = session.client.drain_node(&self.node).await?;
        if !node.workers.is_empty() {
            talk(&format!(
                "{} workers are leaving; `outlast node show {}` shows which are left",
                node.workers.len(),
                node.id
            ));
        }
        tell(&session, &node)
    }
}

fn tell(session: &Session, node: &Node) -> Result<Exit, Problem> {
    print_one(session.format, node, || format!("{} {}\n", node.id, condition(node)))?;
    Ok(Exit::Done)
}
