//! `RelayService`: the leader's side. Every call names its cluster; what is meant for the leader is refused elsewhere,
//! never passed on a second time.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{Envelope, decode_batch, encode_response};
use outlast_proto::node::v1::Progress;
use outlast_proto::relay::v1::relay_service_server::RelayService;
use outlast_proto::relay::v1::{
    LeaderViewRequest, LeaderViewResponse, MembershipRequest, MembershipResponse, NodeView, ProposeRequest,
    ProposeResponse, ReadIndexRequest, ReadIndexResponse, RelayHeartbeatsRequest, RelayHeartbeatsResponse,
    WaitingGroup,
};
use outlast_proto::status::Failure;
use tonic::{Request, Response, Status};

use crate::clock::wall_now;
use crate::limits::{TRY_DEADLINE, WRITE_DEADLINE};
use crate::member::{Member, no_leader};
use crate::membership;
use crate::propose::may_travel;
use crate::seat::Seat;

/// Heartbeats in one call; the protocol's bound.
const HEARTBEATS_MAX: usize = 1_024;

pub(crate) struct RelayHandler {
    pub(crate) seat: Arc<Seat>,
}

impl RelayHandler {
    fn member(&self, cluster_id: &str) -> Result<Arc<Member>, Failure> {
        let member = self.seat.member()?;
        member.check_cluster(cluster_id)?;
        Ok(member)
    }

    async fn handle_propose(&self, request: ProposeRequest) -> Result<ProposeResponse, Failure> {
        let member = self.member(&request.cluster_id)?;
        let mut envelope = one_envelope(&request.envelope)?;
        if !may_travel(&envelope.command) {
            return Err(Failure::Denied {
                reason: "a decision of the leader cannot be passed on to it".to_owned(),
                hint: String::new(),
            });
        }
        // The proposing leader's clock, or the history would jump between the clocks of the followers.
        envelope.at = wall_now();
        let decided = member.propose_here(envelope, TRY_DEADLINE).await?;
        Ok(ProposeResponse { index: decided.index, response: encode_response(&decided.response) })
    }

    async fn handle_heartbeats(
        &self,
        request: RelayHeartbeatsRequest,
    ) -> Result<RelayHeartbeatsResponse, Failure> {
        let member = self.member(&request.cluster_id)?;
        if request.heartbeats.len() > HEARTBEATS_MAX {
            return Err(Failure::Rejected {
                reason: format!(
                    "{} heartbeats in one call; at most {HEARTBEATS_MAX}",
                    request.heartbeats.len()
                ),
                hint: String::new(),
            });
        }
        let office = member.office().ok_or_else(no_leader)?;
        Ok(RelayHeartbeatsResponse { grants: office.confirm(request.heartbeats).await? })
    }

    async fn handle_read_index(&self, request: ReadIndexRequest) -> Result<ReadIndexResponse, Failure> {
        let member = self.member(&request.cluster_id)?;
        if !member.leads() {
            return Err(no_leader());
        }
        Ok(ReadIndexResponse { index: member.reads.confirm_once().await? })
    }

    fn handle_leader_view(&self, request: &LeaderViewRequest) -> Result<LeaderViewResponse, Failure> {
        let member = self.member(&request.cluster_id)?;
        let office = member.office().ok_or_else(no_leader)?;
        let notes = office.board.notes();
        let progress = notes.progress.into_iter().map(|((attempt, rank), (step, metrics))| Progress {
            attempt: attempt.to_string(),
            rank,
            step,
            metrics: metrics.into_iter().collect(),
            // What a save costs is the planner's own; operators see the interval that came of it.
            save_stall_ms: 0,
            save_write_ms: 0,
        });
        let health = notes.health;
        let node = |(node, condition): (outlast_types::NodeId, String)| NodeView {
            node: node.to_string(),
            condition,
            health: health.get(&node).cloned().map(Into::into),
        };
        let waiting = |(group, reason): (outlast_types::GroupId, String)| WaitingGroup {
            group: group.to_string(),
            reason,
        };
        Ok(LeaderViewResponse {
            nodes: notes.conditions.into_iter().map(node).collect(),
            progress: progress.collect(),
            waiting: notes.waiting.into_iter().map(waiting).collect(),
            members: membership::views(&member),
        })
    }

    async fn handle_membership(&self, request: MembershipRequest) -> Result<MembershipResponse, Failure> {
        let member = self.member(&request.cluster_id)?;
        if !member.leads() {
            return Err(no_leader());
        }
        membership::change_here(&member, request.try_into()?, MEMBERSHIP_DEADLINE).await?;
        Ok(MembershipResponse {})
    }
}

/// A learner may have to take over a whole snapshot first.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(3 * WRITE_DEADLINE.as_secs());

fn one_envelope(bytes: &[u8]) -> Result<Envelope, Failure> {
    let rejected =
        |reason: String| Failure::Rejected { reason, hint: "upgrade the older coordinators".to_owned() };
    let mut batch = decode_batch(bytes).map_err(|error| rejected(error.to_string()))?;
    match (batch.pop(), batch.is_empty()) {
        (Some(envelope), true) => Ok(envelope),
        _ => Err(rejected("exactly one command is passed on at a time".to_owned())),
    }
}

#[tonic::async_trait]
impl RelayService for RelayHandler {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        Ok(Response::new(self.handle_propose(request.into_inner()).await?))
    }
    async fn heartbeats(
        &self,
        request: Request<RelayHeartbeatsRequest>,
    ) -> Result<Response<RelayHeartbeatsResponse>, Status> {
        Ok(Response::new(self.handle_heartbeats(request.into_inner()).await?))
    }
    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        Ok(Response::new(self.handle_read_index(request.into_inner()).await?))
    }
    async fn leader_view(
        &self,
        request: Request<LeaderViewRequest>,
    ) -> Result<Response<LeaderViewResponse>, Status> {
        Ok(Response::new(self.handle_leader_view(request.get_ref())?))
    }
    async fn membership(
        &self,
        request: Request<MembershipRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        Ok(Response::new(self.handle_membership(request.into_inner()).await?))
    }
}
