//! `NodeService`: what agents call.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use outlast_control::state::{Command, Response as Applied};
use outlast_failpoint::{Failpoint, reach};
use outlast_proto::FieldError;
use outlast_proto::convert::parse;
use outlast_proto::node::v1::node_service_server::NodeService;
use outlast_proto::node::v1::{
    AgentMessage, CheckpointUpdate, CoordinatorMessage, GetCheckpointFateRequest, HeartbeatRequest,
    LeaseGrant, OpenCheckpointRequest, OpenCheckpointResponse,
};
use outlast_proto::relay::v1::RelayedHeartbeat;
use outlast_proto::status::Failure;
use outlast_types::{Actor, AttemptId, NodeId, RegistrationId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{checkpoints, stream};
use crate::limits::WRITE_DEADLINE;
use crate::member::no_leader;
use crate::propose::envelope;
use crate::seat::Seat;

/// Messages on their way to an agent that does not read them at the moment.
const DOWN_MAX: usize = 64;
const HEDGE_DEADLINE: Duration = Duration::from_millis(1_500);

pub(crate) struct NodeHandler {
    pub(crate) seat: Arc<Seat>,
}

pub(crate) fn rejected(error: FieldError) -> Failure {
    Failure::Rejected {
        reason: error.to_string(),
        hint: "agent and coordinator may be of different versions".to_owned(),
    }
}

fn source<T>(request: &Request<T>) -> Option<String> {
    request.remote_addr().map(|address| address.to_string())
}

impl NodeHandler {
    async fn handle_heartbeat(&self, request: HeartbeatRequest) -> Result<LeaseGrant, Failure> {
        let member = self.seat.member()?;
        member.check_cluster(&request.cluster_id)?;
        let (grant, mut granted) = mpsc::channel(1);
        let HeartbeatRequest { node, registration, heartbeat, .. } = request;
        member.heartbeats.send(RelayedHeartbeat { node, registration, heartbeat }, grant)?;
        match tokio::time::timeout(HEDGE_DEADLINE, granted.recv()).await {
            Ok(Some(grant)) => Ok(grant),
            Ok(None) | Err(_) => Err(no_leader()),
        }
    }

    async fn handle_open_checkpoint(
        &self,
        request: OpenCheckpointRequest,
        source: Option<String>,
    ) -> Result<OpenCheckpointResponse, Failure> {
        let member = self.seat.member()?;
        if !request.cluster_id.is_empty() {
            member.check_cluster(&request.cluster_id)?;
        }
        let invalid = |error: outlast_types::IdParseError| Failure::Rejected {
            reason: error.to_string(),
            hint: String::new(),
        };
        let node: NodeId = request.node.parse().map_err(invalid)?;
        let attempt: AttemptId = request.attempt.parse().map_err(invalid)?;
        let registration = RegistrationId(request.registration);
        // A soft check, for a clear answer; the fence is the attempt, checked where the command is applied. Not known here
        // (yet): the agent has just started, or this coordinator is behind.
        if member.state(|state| state.nodes.get(&node).is_none_or(|known| known.registration != registration))
        {
            return Err(Failure::Unavailable {
                reason: format!("{registration} is not the registration of {node} here"),
                hint: "the agent tries again when it is registered".to_owned(),
                retry_after_ms: 0,
            });
        }
        let command = Command::OpenCheckpoint { attempt, step: request.step, in_turn: request.in_turn };
        let decided =
            member.change(envelope(Actor::Agent(node), source, None, command), WRITE_DEADLINE).await?;
        let unanswered = |err: std::io::Error| Failure::Fatal { reason: err.to_string() };
        reach(Failpoint::LeaderOpenBeforeReply).await.map_err(unanswered)?;
        match decided.response {
            Applied::CheckpointOpened(seq) => {
                Ok(OpenCheckpointResponse { checkpoint: seq.to_string(), skipped: false })
            }
            Applied::CheckpointSkipped { .. } => {
                Ok(OpenCheckpointResponse { checkpoint: String::new(), skipped: true })
            }
            other => {
                Err(Failure::Fatal { reason: format!("opening a checkpoint was answered with {other:?}") })
            }
        }
    }

    /// Confirmed, because "unknown" has to mean that there is none (any more).
    async fn handle_get_checkpoint_fate(
        &self,
        request: GetCheckpointFateRequest,
    ) -> Result<CheckpointUpdate, Failure> {
        let member = self.seat.member()?;
        member.check_cluster(&request.cluster_id)?;
        let asked = request.checkpoint.ok_or_else(|| rejected(FieldError::missing("checkpoint")))?;
        let job = parse("checkpoint.job", &asked.job).map_err(rejected)?;
        let seq = parse("checkpoint.checkpoint", &asked.checkpoint).map_err(rejected)?;
        member.confirm_read().await?;
        Ok(member.state(|state| checkpoints::update(state, job, seq)))
    }
}

#[tonic::async_trait]
impl NodeService for NodeHandler {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let member = self.seat.member()?;
        let source = source(&request);
        let (down, messages) = mpsc::channel(DOWN_MAX);
        tokio::spawn(stream::run(member, request.into_inner(), down, source));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<LeaseGrant>, Status> {
        Ok(Response::new(self.handle_heartbeat(request.into_inner()).await?))
    }

    async fn open_checkpoint(
        &self,
        request: Request<OpenCheckpointRequest>,
    ) -> Result<Response<OpenCheckpointResponse>, Status> {
        let source = source(&request);
        Ok(Response::new(self.handle_open_checkpoint(request.into_inner(), source).await?))
    }

    async fn get_checkpoint_fate(
        &self,
        request: Request<GetCheckpointFateRequest>,
    ) -> Result<Response<CheckpointUpdate>, Status> {
        Ok(Response::new(self.handle_get_checkpoint_fate(request.into_inner()).await?))
    }
}
