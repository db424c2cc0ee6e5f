//! Nodes: list, show, cordon, drain, label.

use outlast_control::state::{ClusterState, Command, Node};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_proto::view;
use outlast_types::NodeId;

use super::{ControlHandler, operator, rejected, request_id};
use crate::limits::WRITE_DEADLINE;
use crate::member::Member;
use crate::propose::envelope;

/// What an operator asks of one node.
pub(crate) struct NodeChange {
    pub(crate) request_id: String,
    pub(crate) actor: String,
    pub(crate) node: String,
}

impl From<pb::NodeRequest> for NodeChange {
    fn from(request: pb::NodeRequest) -> Self {
        let pb::NodeRequest { request_id, node, actor } = request;
        Self { request_id, actor, node }
    }
}

fn find_node<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Node, Failure> {
    let id = NodeId::new(text).ok();
    id.and_then(|id| state.nodes.get(&id)).ok_or_else(|| Failure::NotFound {
        what: format!("node {text}"),
        hint: "`outlast node list` shows the nodes".to_owned(),
    })
}

async fn show(member: &Member, node: &str) -> Result<pb::Node, Failure> {
    let notes = member.notes().await;
    member.state(|state| Ok(view::node_view(state, find_node(state, node)?, &notes)))
}

impl ControlHandler {
    pub(crate) async fn list_nodes(&self) -> Result<pb::ListNodesResponse, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let notes = member.notes().await;
        let nodes = member
            .state(|state| state.nodes.values().map(|node| view::node_view(state, node, &notes)).collect());
        Ok(pb::ListNodesResponse { nodes })
    }

    pub(crate) async fn get_node(&self, node: &str) -> Result<pb::Node, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        show(&member, node).await
    }

    pub(crate) async fn label_node(
        &self,
        request: pb::LabelNodeRequest,
        source: Option<String>,
    ) -> Result<pb::Node, Failure> {
        let pb::LabelNodeRequest { request_id, node, set, remove, actor } = request;
        let labels: std::collections::BTreeMap<String, String> = set.into_iter().collect();
        if labels.is_empty() && remove.is_empty() {
            return Err(rejected("no label was named", "write name=value to set one, name- to remove it"));
        }
        let change = NodeChange { request_id, actor, node };
        self.change_node(change, source, |node| Command::LabelNode { node, set: labels, remove }).await
    }

    pub(crate) async fn change_node(
        &self,
        change: NodeChange,
        source: Option<String>,
        command: impl FnOnce(NodeId) -> Command,
    ) -> Result<pb::Node, Failure> {
        let member = self.seat.member()?;
        let id = request_id(&change.request_id)?;
        let node = NodeId::new(change.node.clone())
            .map_err(|error| rejected(error, "`outlast node list` shows the nodes"))?;
        let envelope = envelope(operator(&change.actor), source, Some(id), command(node));
        member.change(envelope, WRITE_DEADLINE).await?;
        show(&member, &change.node).await
    }
}
