//! Changes of the set of coordinators. They run at the leader; any coordinator passes them on.

use std::str::FromStr;
use std::time::Duration;

use outlast_consensus::MembershipError;
use outlast_control::state::{Command, Envelope};
use outlast_proto::relay::v1::{MemberView, MembershipRequest};
use outlast_proto::status::Failure;
use outlast_types::{Actor, ClusterId, CoordinatorId, RequestId};

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

/// A change that somebody asked for. Whoever passes it on says who that was: the log records the person, not the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) id: CoordinatorId,
    pub(crate) change: Change,
    /// What the operator, or the coordinator that wants to vote, calls itself.
    pub(crate) actor: String,
    pub(crate) source: Option<String>,
    pub(crate) request: RequestId,
}

impl Asked {
    fn into_message(self, cluster_id: &ClusterId) -> MembershipRequest {
        let Asked { id, change, actor, source, request } = self;
        MembershipRequest {
            cluster_id: cluster_id.to_string(),
            coordinator: id.0,
            change: change.as_str().to_owned(),
            actor,
            source: source.unwrap_or_default(),
            request_id: request.to_string(),
        }
    }

    /// The command that takes the id away for ever, in the name of who asked.
    fn removal(&self) -> Envelope {
        let command = Command::RemoveCoordinator { coordinator: self.id };
        let actor = Actor::Operator(self.actor.clone());
        envelope(actor, self.source.clone(), Some(self.request.clone()), command)
    }
}

impl TryFrom<MembershipRequest> for Asked {
    type Error = Failure;

    fn try_from(message: MembershipRequest) -> Result<Self, Failure> {
        let MembershipRequest { cluster_id: _, coordinator, change, actor, source, request_id } = message;
        let request = RequestId::new(request_id).map_err(|error| Failure::Rejected {
            reason: format!("field `request_id`: {error}"),
            hint: "upgrade the older coordinators".to_owned(),
        })?;
        let source = (!source.is_empty()).then_some(source);
        Ok(Self { id: CoordinatorId(coordinator), change: change.parse()?, actor, source, request })
    }
}

/// Makes the change here or at the leader.
pub(crate) async fn change(member: &Member, asked: Asked, within: Duration) -> Result<(), Failure> {
    if member.leads() {
        return change_here(member, asked, within).await;
    }
    let address = member.other_leader().ok_or_else(no_leader)?;
    let request = asked.into_message(&member.cluster_id);
    call(within, member.peers.relay(&address)?.membership(request)).await?;
    Ok(())
}

pub(crate) async fn change_here(member: &Member, asked: Asked, within: Duration) -> Result<(), Failure> {
    let deadline = Deadline::after(within);
    let made = match asked.change {
        Change::Promote => tokio::time::timeout(deadline.left(), promote(member, asked.id)).await,
        Change::Remove => tokio::time::timeout(deadline.left(), remove(member, &asked)).await,
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

async fn remove(member: &Member, asked: &Asked) -> Result<(), Failure> {
    let id = asked.id;
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
    member.change(asked.removal(), WRITE_DEADLINE).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_that_is_passed_on_is_recorded_in_the_name_of_who_asked() {
        let asked = Asked {
            id: CoordinatorId(7),
            change: Change::Remove,
            actor: "ada".to_owned(),
            source: Some("10.0.0.9:4711".to_owned()),
            request: RequestId::new("r-1").expect("valid"),
        };
        let message = asked.clone().into_message(&ClusterId::new("c-1").expect("valid"));
        let at_the_leader = Asked::try_from(message).expect("it is understood");
        assert_eq!(at_the_leader, asked);
        let envelope = at_the_leader.removal();
        assert_eq!(envelope.actor, Actor::Operator("ada".to_owned()));
        assert_eq!(envelope.source.as_deref(), Some("10.0.0.9:4711"));
        assert_eq!(envelope.request.as_ref().map(RequestId::as_str), Some("r-1"));
        assert_eq!(envelope.command, Command::RemoveCoordinator { coordinator: CoordinatorId(7) });
    }

    #[test]
    fn a_change_without_a_request_id_is_refused() {
        let nameless = MembershipRequest { change: "remove".to_owned(), ..MembershipRequest::default() };
        assert!(matches!(Asked::try_from(nameless), Err(Failure::Rejected { .. })));
    }
}
