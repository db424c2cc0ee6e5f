//! Changes of the set of coordinators. They run at the leader; any coordinator passes them on.

use std::str::FromStr;
use std::time::Duration;

use outlast_consensus::MembershipError;
use outlast_control::state::Command;
use outlast_proto::relay::v1::{MemberView, MembershipRequest};
use outlast_proto::status::Failure;
use outlast_types::{Actor, CoordinatorId};

use crate::clock::Deadline;
use crate::limits::WRITE_DEADLINE;
use crate::member::{Member, no_leader};
use crate::peers::call;
use crate::propose::envelope;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Add as a learner, wait until it has caught up, make it a voter.
    Promote,
    Remove,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Change::Promote => "promote",
            Change::Remove => "remove",
        }
    }
}

impl FromStr for Change {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "promote" => Ok(Change::Promote),
            "remove" => Ok(Change::Remove),
            other => Err(Failure::Rejected {
                reason: format!("{other:?} is not a change of membership"),
                hint: "promote or remove".to_owned(),
            }),
        }
    }
}

/// Makes the change here or at the leader.
pub(crate) async fn change(
    member: &Member,
    id: CoordinatorId,
    change: Change,
    within: Duration,
) -> Result<(), Failure> {
    if member.leads() {
        return change_here(member, id, change, within).await;
    }
    let address = member.other_leader().ok_or_else(no_leader)?;
    let request = MembershipRequest {
        cluster_id: member.cluster_id.to_string(),
        coordinator: id.0,
        change: change.as_str().to_owned(),
    };
    call(within, member.peers.relay(&address)?.membership(request)).await?;
    Ok(())
}

pub(crate) async fn change_here(
    member: &Member,
    id: CoordinatorId,
    change: Change,
    within: Duration,
) -> Result<(), Failure> {
    let deadline = Deadline::after(within);
    let made = match change {
        Change::Promote => tokio::time::timeout(deadline.left(), promote(member, id)).await,
        Change::Remove => tokio::time::timeout(deadline.left(), remove(member, id)).await,
    };
    made.unwrap_or_else(|_| {
        Err(Failure::Unknown {
            reason: format!("the change of membership was not complete after {} s", within.as_secs()),
            hint: "it goes on; look at `outlast cluster status`".to_owned(),
        })
    })
}

async fn promote(member: &Member, id: CoordinatorId) -> Result<(), Failure> {
    let record = member.state(|state| state.coordinators.get(&id).cloned());
    let record = record.ok_or_else(|| unknown_coordinator(id))?;
    if record.removed {
        return Err(Failure::Rejected {
            reason: format!("coordinator {id} was removed, and ids are never used again"),
            hint: "empty its data folder and let it join again: it gets a new id".to_owned(),
        });
    }
    member.consensus.add_learner(id, &record.address).await.map_err(membership_failure)?;
    member.consensus.promote(id).await.map_err(membership_failure)?;
    tracing::info!(coordinator = %id, "coordinator votes now");
    Ok(())
}

async fn remove(member: &Member, id: CoordinatorId) -> Result<(), Failure> {
    if !member.state(|state| state.coordinators.contains_key(&id)) {
        return Err(unknown_coordinator(id));
    }
    let voters = member.consensus.members().into_iter().filter(|known| known.voter);
    if voters.map(|known| known.id).eq([id]) {
        return Err(Failure::Rejected {
            reason: format!("coordinator {id} is the only one that votes"),
            hint: "wait until another one votes: `outlast cluster status` shows it".to_owned(),
        });
    }
    // The record first: it is what refuses the id for ever, and a leader that removes itself can write no more.
    let command = Command::RemoveCoordinator { coordinator: id };
    member.change(envelope(Actor::System, None, None, command), WRITE_DEADLINE).await?;
    member.consensus.remove(id).await.map_err(membership_failure)?;
    tracing::info!(coordinator = %id, "coordinator removed");
    Ok(())
}

fn unknown_coordinator(id: CoordinatorId) -> Failure {
    Failure::NotFound {
        what: format!("coordinator {id}"),
        hint: "`outlast cluster status` lists them".to_owned(),
    }
}

fn membership_failure(error: MembershipError) -> Failure {
    let reason = format!("the change of membership was not made: {error}");
    let hint = "look at `outlast cluster status`".to_owned();
    match error {
        MembershipError::IdReused { .. }
        | MembershipError::LastVoter { .. }
        | MembershipError::Refused { .. } => Failure::Rejected { reason, hint },
        MembershipError::AlreadyMember { .. } => Failure::Conflict { reason, hint },
        MembershipError::NotMember { id } => unknown_coordinator(id),
        MembershipError::Unknown => Failure::Unknown { reason, hint },
        MembershipError::NotLeader { .. }
        | MembershipError::InProgress
        | MembershipError::Lagging { .. }
        | MembershipError::Stopped => Failure::Unavailable { reason, hint, retry_after_ms: 1_000 },
    }
}

/// How far the members are, as this coordinator sees it; of use at the leader only.
pub(crate) fn views(member: &Member) -> Vec<MemberView> {
    let of_status = member.consensus.members().into_iter();
    let view = |known: outlast_consensus::Member| MemberView {
        id: known.id.0,
        lag: known.lag.unwrap_or(0),
        reachable: known.matched.is_some(),
    };
    of_status.map(view).collect()
}
