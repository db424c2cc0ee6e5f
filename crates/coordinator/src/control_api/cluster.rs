//! The cluster's own life: make it, join it, leave it.

use std::time::Duration;

use outlast_control::state::{ClusterState, Command, Response};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{Actor, CoordinatorId, Profile};

use super::{ControlHandler, operator, operator_name, rejected, request_id};
use crate::limits::WRITE_DEADLINE;
use crate::member::Member;
use crate::membership::{self, Asked, Change};
use crate::propose::envelope;

/// A learner may have to take over a whole snapshot.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(35);

fn coordinator_id(text: &str) -> Result<CoordinatorId, Failure> {
    text.parse().map_err(|error| rejected(error, "`outlast cluster status` lists the coordinators"))
}

impl ControlHandler {
    pub(crate) async fn init_cluster(
        &self,
        request: pb::InitClusterRequest,
    ) -> Result<pb::ClusterStatusResponse, Failure> {
        let profile: Profile = match request.profile.as_str() {
            "" => Profile::default(),
            text => text
                .parse()
                .map_err(|error| rejected(error, "lan, or wan for several sites or slow disks"))?,
        };
        self.seat.found(profile).await?;
        self.cluster_status().await
    }

    pub(crate) async fn join_cluster(
        &self,
        request: pb::JoinClusterRequest,
        source: Option<String>,
    ) -> Result<pb::JoinClusterResponse, Failure> {
        let member = self.seat.member()?;
        if !request.address.contains(':') {
            return Err(rejected(format!("{:?} is not an address", request.address), "write host:port"));
        }
        let address = request.address.clone();
        let command =
            Command::AddCoordinator { address: request.address, feature_level: request.feature_level };
        // One id for all tries of this call, or a lost answer would give away two coordinator ids.
        let id = request_id("")?;
        let actor = Actor::Operator("coordinator".to_owned());
        let id = match member.change(envelope(actor, source, Some(id), command), WRITE_DEADLINE).await {
            Ok(decided) => read_added(decided.response)?,
            // It asked before, and did not get the answer; or another one joined in the same entry.
            Err(Failure::Conflict { reason, .. }) => match unused_id(&member, &address).await? {
                Some(id) => id,
                None => return Err(not_this_time(&member, &address, reason)),
            },
            Err(failure) => return Err(failure),
        };
        Ok(pb::JoinClusterResponse {
            cluster_id: member.cluster_id.to_string(),
            coordinator_id: id.to_string(),
            profile: member.profile.to_string(),
        })
    }

    /// Raises the feature level to the highest that every member knows. A retry finds nothing left to do.
    pub(crate) async fn upgrade_cluster(
        &self,
        request: pb::UpgradeClusterRequest,
        source: Option<String>,
    ) -> Result<pb::ClusterStatusResponse, Failure> {
        let member = self.seat.member()?;
        let id = request_id(&request.request_id)?;
        member.confirm_read().await?;
        if let Some(level) = member.state(ClusterState::next_feature_level)? {
            let command = Command::RaiseFeatureLevel { level };
            let envelope = envelope(operator(&request.actor), source, Some(id), command);
            member.change(envelope, WRITE_DEADLINE).await?;
        }
        self.cluster_status().await
    }

    /// By the coordinator that wants to vote; asking again is harmless.
    pub(crate) async fn promote_coordinator(
        &self,
        request: pb::PromoteCoordinatorRequest,
        source: Option<String>,
    ) -> Result<pb::ClusterStatusResponse, Failure> {
        self.change_membership(Asked {
            id: coordinator_id(&request.coordinator_id)?,
            change: Change::Promote,
            actor: "coordinator".to_owned(),
            source,
            request: request_id("")?,
        })
        .await
    }

    pub(crate) async fn remove_coordinator(
        &self,
        request: pb::RemoveCoordinatorRequest,
        source: Option<String>,
    ) -> Result<pb::ClusterStatusResponse, Failure> {
        self.change_membership(Asked {
            id: coordinator_id(&request.coordinator_id)?,
            change: Change::Remove,
            actor: operator_name(&request.actor),
            source,
            request: request_id(&request.request_id)?,
        })
        .await
    }

    async fn change_membership(&self, asked: Asked) -> Result<pb::ClusterStatusResponse, Failure> {
        let member = self.seat.member()?;
        membership::change(&member, asked, MEMBERSHIP_DEADLINE).await?;
        self.cluster_status().await
    }
}

/// A conflict is final where the address is taken; else the next try gets an id of its own.
fn not_this_time(member: &Member, address: &str, reason: String) -> Failure {
    let taken = member
        .consensus
        .read(|state| state.coordinators.values().any(|record| !record.removed && record.address == address));
    if taken {
        let hint = format!("remove the coordinator at {address} first: outlast cluster remove ID");
        return Failure::Conflict { reason, hint };
    }
    Failure::Unavailable { reason, hint: "try again".to_owned(), retry_after_ms: 100 }
}

fn read_added(response: Response) -> Result<CoordinatorId, Failure> {
    match response {
        Response::CoordinatorAdded(id) => Ok(id),
        other => Err(Failure::Fatal { reason: format!("a join was answered with {other:?}") }),
    }
}

/// The id that was given to this address and never used: it is no member, so it has never voted.
async fn unused_id(member: &Member, address: &str) -> Result<Option<CoordinatorId>, Failure> {
    member.confirm_read().await?;
    let given = member.state(|state| {
        let mut records = state.coordinators.iter();
        records.find(|(_, record)| !record.removed && record.address == address).map(|(id, _)| *id)
    });
    Ok(given.filter(|id| !member.consensus.members().iter().any(|known| known.id == *id)))
}
