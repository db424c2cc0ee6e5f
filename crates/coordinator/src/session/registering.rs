//! From Hello to a registration that is applied, and what a registration counts for.

use std::time::Duration;

use outlast_control::state::{ClusterState, Command, NodeCondition, Refusal, Registration, Response};
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::status::Failure;
use outlast_types::{Actor, ClusterId, NodeId, RegistrationId};
use tonic::Streaming;

use crate::clock::Deadline;
use crate::member::Member;
use crate::propose::envelope;

const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Why a session ended, where the agent should be told.
pub(super) enum End {
    Closed,
    Refused {
        reason: String,
        word: LastWord,
    },
    /// The agent is of a cluster that this one goes on from.
    Succeeded {
        predecessors: Vec<ClusterId>,
    },
    Failed(Failure),
}

/// What an agent that is refused should do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LastWord {
    TryAgain,
    RegisterAnew,
    GiveUp,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure)
    }
}

pub(super) fn rejected(field: &str, reason: &str) -> Failure {
    Failure::Rejected { reason: format!("field `{field}`: {reason}"), hint: String::new() }
}

pub(super) async fn read_hello(up: &mut Streaming<pb::AgentMessage>) -> Result<pb::Hello, End> {
    let first = tokio::time::timeout(HELLO_DEADLINE, up.message()).await;
    match first {
        Ok(Ok(Some(pb::AgentMessage { message: Some(Up::Hello(hello)) }))) => Ok(hello),
        Ok(Ok(Some(_))) => Err(rejected("message", "the first message must be Hello").into()),
        Ok(Ok(None)) | Ok(Err(_)) | Err(_) => Err(End::Closed),
    }
}

/// Whether the agent may register here: it is new, or of this cluster.
pub(super) fn check_cluster(member: &Member, of_agent: &str) -> Result<(), End> {
    if of_agent.is_empty() || of_agent == member.cluster_id.as_str() {
        return Ok(());
    }
    // A member that has copied nothing yet does not know what its cluster goes on from.
    let config = member.state(|state| state.config.clone());
    let config = config.filter(|config| config.cluster_id == member.cluster_id).ok_or_else(no_data)?;
    if config.predecessors.iter().any(|older| older.as_str() == of_agent) {
        return Err(End::Succeeded { predecessors: config.predecessors });
    }
    let reason = format!(
        "this agent's data folder belongs to cluster {of_agent}, this coordinator to {}: give the agent another folder or \
         other coordinators",
        member.cluster_id
    );
    Err(End::Refused { reason, word: LastWord::GiveUp })
}

fn no_data() -> Failure {
    Failure::Unavailable {
        reason: "this coordinator has not copied its cluster's data yet".to_owned(),
        hint: "ask another coordinator".to_owned(),
        retry_after_ms: 500,
    }
}

pub(super) async fn register(
    member: &Member,
    registration: Registration,
    source: Option<String>,
    deadline: Deadline,
) -> Result<u64, End> {
    let (node, id) = (registration.node.clone(), registration.registration);
    let actor = Actor::Agent(node.clone());
    let command = Command::RegisterNode(Box::new(registration));
    let decided = member.decide(envelope(actor, source, None, command), deadline).await?;
    match decided.response {
        Response::Registered { index } => Ok(index),
        // A bound may be reached now and not later; everything else stays as it is.
        Response::Refused(refusal @ Refusal::Exhausted { .. }) => {
            Err(End::Refused { reason: refusal.to_string(), word: LastWord::TryAgain })
        }
        Response::Refused(refusal) => {
            // Why is in the state that refused it.
            member.wait_applied(decided.index, deadline).await?;
            let lost = member.state(|state| standing(state, &node, id)) == Standing::Lost;
            let word = if lost { LastWord::RegisterAnew } else { LastWord::GiveUp };
            Err(End::Refused { reason: refusal.to_string(), word })
        }
        other => Err(Failure::Fatal { reason: format!("a registration was answered with {other:?}") }.into()),
    }
}

/// What a registration counts for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Current,
    /// Its node was declared Lost, and may come back under a new one.
    Lost,
    ReplacedBy(RegistrationId),
    Unknown,
}

pub(super) fn standing(state: &ClusterState, node: &NodeId, registration: RegistrationId) -> Standing {
    match state.nodes.get(node) {
        None => Standing::Unknown,
        Some(node) if node.registration != registration => Standing::ReplacedBy(node.registration),
        Some(node) if node.condition == NodeCondition::Lost => Standing::Lost,
        Some(_) => Standing::Current,
    }
}
