//! The way into an existing cluster: get an id, become an empty member, be made a voter.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::FORMAT_VERSION;
use outlast_proto::control::v1::{JoinClusterRequest, JoinClusterResponse, PromoteCoordinatorRequest};
use outlast_proto::status::Failure;
use outlast_types::{ClusterId, CoordinatorId, Profile};

use crate::StartError;
use crate::member::{Member, no_leader};
use crate::peers::{Peers, call};
use crate::seat::Seat;

/// A cluster that is started at the same time needs a moment; one that is not there after a minute is not there.
const JOIN_TRIES_MAX: u32 = 60;
const JOIN_PAUSE: Duration = Duration::from_secs(1);
const JOIN_DEADLINE: Duration = Duration::from_secs(12);
/// The leader sends everything that it has before it promotes.
const PROMOTE_DEADLINE: Duration = Duration::from_secs(40);
const PROMOTE_PAUSE: Duration = Duration::from_secs(2);
/// Ten minutes of tries; then a person should look.
const PROMOTE_TRIES_MAX: u32 = 300;
/// How long the start waits for the promotion before it goes on in the background.
const START_WAITS: Duration = Duration::from_secs(30);

/// Joins through any of the addresses and takes the seat.
pub(crate) async fn join(seat: &Arc<Seat>, through: &[String]) -> Result<(), StartError> {
    let failed = |source| StartError::Join { tried: through.join(", "), source };
    let response = ask_all(seat, through).await.map_err(failed)?;
    let (cluster_id, id, profile) = read_response(&response).map_err(failed)?;
    tracing::info!(coordinator = %id, cluster = %cluster_id, "was given an id");
    let seated = seat.founder.join(cluster_id, id, profile, seat.metrics.clone()).await.map_err(failed)?;
    let member = seated.member.clone();
    seat.take(seated);
    let settling = settle(member, through.to_vec());
    let mut settling = tokio::spawn(settling);
    if tokio::time::timeout(START_WAITS, &mut settling).await.is_err() {
        tracing::warn!(coordinator = %id, "does not vote yet; the promotion goes on in the background");
    }
    Ok(())
}

/// A member that was stopped between its join and its promotion goes on with it.
pub(crate) fn settle_later(seat: &Arc<Seat>, through: &[String]) {
    if let Ok(member) = seat.member() {
        tokio::spawn(settle(member, through.to_vec()));
    }
}

async fn ask_all(seat: &Seat, through: &[String]) -> Result<JoinClusterResponse, Failure> {
    let peers = Peers::default();
    let mut failure = no_leader();
    for _ in 0..JOIN_TRIES_MAX {
        for address in through {
            let request = JoinClusterRequest { address: seat.address.clone(), feature_level: FORMAT_VERSION };
            match call(JOIN_DEADLINE, peers.control(address)?.join_cluster(request)).await {
                Ok(response) => return Ok(response),
                Err(refused) if !refused.is_retryable() => return Err(refused),
                Err(later) => {
                    tracing::info!(%address, failure = %later, "cannot join there yet");
                    failure = later;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(JOIN_PAUSE) => {}
            () = seat.founder.shutdown.cancelled() => return Err(crate::member::stopping()),
        }
    }
    Err(failure)
}

fn read_response(response: &JoinClusterResponse) -> Result<(ClusterId, CoordinatorId, Profile), Failure> {
    let odd = |error: &dyn std::fmt::Display| Failure::Rejected {
        reason: format!("the cluster's answer is not understood: {error}"),
        hint: "are both of the same version?".to_owned(),
    };
    let cluster_id = response.cluster_id.parse().map_err(|error| odd(&error))?;
    let id = response.coordinator_id.parse().map_err(|error| odd(&error))?;
    let profile = response.profile.parse().map_err(|error| odd(&error))?;
    Ok((cluster_id, id, profile))
}

fn votes(member: &Member) -> bool {
    member.consensus.members().iter().any(|known| known.id == member.id && known.voter)
}

/// Asks to be promoted until this coordinator votes.
async fn settle(member: Arc<Member>, through: Vec<String>) {
    for _ in 0..PROMOTE_TRIES_MAX {
        if votes(&member) {
            return;
        }
        let mut addresses = through.clone();
        addresses.extend(member.state(|state| {
            let others =
                state.coordinators.iter().filter(|(id, record)| **id != member.id && !record.removed);
            others.map(|(_, record)| record.address.clone()).collect::<Vec<_>>()
        }));
        for address in addresses {
            if let Err(failure) = ask_promotion(&member, &address).await {
                tracing::debug!(%address, %failure, "not promoted yet");
            } else {
                tracing::info!(coordinator = %member.id, "votes now");
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PROMOTE_PAUSE) => {}
            () = member.shutdown.cancelled() => return,
        }
    }
    tracing::error!(coordinator = %member.id, "was not made a voter: look at `outlast cluster status`");
}

async fn ask_promotion(member: &Member, address: &str) -> Result<(), Failure> {
    let request = PromoteCoordinatorRequest { coordinator_id: member.id.to_string() };
    call(PROMOTE_DEADLINE, member.peers.control(address)?.promote_coordinator(request)).await?;
    Ok(())
}
