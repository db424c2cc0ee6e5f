//! `outlast node list`.

use outlast_proto::control::v1::{ListNodesResponse, Node};

use super::condition;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, age, print_one, size, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct List {}

impl List {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let nodes = session.client.list_nodes().await?;
        let answer = ListNodesResponse { nodes };
        print_one(session.format, &answer, || table(&answer.nodes))?;
        if answer.nodes.is_empty() {
            talk("no nodes; `outlast agent` on a machine makes it one");
        }
        Ok(Exit::Done)
    }
}

fn table(nodes: &[Node]) -> String {
    let paint = Paint::stdout();
    let mut columns =
        Columns::new(&["NAME", "CONDITION", "DOMAIN", "CPUS", "MEMORY", "GPUS", "WORKERS", "AGE", "ADDRESS"]);
    for node in nodes {
        columns.row(&[
            node.id.clone(),
            paint.state(&condition(node)),
            node.failure_domain.clone(),
            format!("{}/{}", node.cpus_free, node.cpus),
            format!("{}/{}", size(node.memory_free_bytes), size(node.memory_bytes)),
            format!("{}/{}", node.gpus_free, node.gpus),
            node.workers.len().to_string(),
            age(node.registered_at),
            node.address.clone(),
        ]);
    }
    columns.finish()
}
