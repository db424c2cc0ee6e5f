//! The cluster's members, and the changes of them.
//!
//! ```text
//! add_learner ──caught up──► learner ──promote──► joint ──► voter ──remove──► joint ──► gone (the id never comes back)
//!                                                    └ a crash between the two entries: finish_joint
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use outlast_types::CoordinatorId;

use crate::error::MembershipError;
use crate::leadership::Leader;
use crate::types::{Metrics, Raft};

/// A learner this close is caught up: what is missing is one heartbeat's worth.
const CAUGHT_UP_ENTRIES: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: CoordinatorId,
    pub address: String,
    pub voter: bool,
    pub leader: bool,
    /// The newest entry that the leader knows it to have; only the leader knows.
    pub matched: Option<u64>,
    /// Entries that it is behind; only the leader knows.
    pub lag: Option<u64>,
}

pub(crate) fn members(metrics: &Metrics) -> Vec<Member> {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let last = metrics.last_log_index.map_or(0, |index| index + 1);
    let member = |(id, node): (&u64, &BasicNode)| {
        let replication = metrics.replication.as_ref().and_then(|all| all.get(id));
        let matched = replication.map(|matched| matched.map_or(0, |matched| matched.index + 1));
        Member {
            id: CoordinatorId(*id),
            address: node.addr.clone(),
            voter: voters.contains(id),
            leader: metrics.current_leader == Some(*id),
            matched: replication.and_then(|matched| matched.map(|matched| matched.index)),
            lag: matched.map(|next| last.saturating_sub(next)),
        }
    };
    membership.nodes().map(member).collect()
}

/// Changes of the membership, by the leader.
pub(crate) struct Changes<'a> {
    pub(crate) raft: &'a Raft,
    pub(crate) deadline: Duration,
}

fn change_error(err: RaftError<u64, ClientWriteError<u64, BasicNode>>) -> MembershipError {
    match err {
        RaftError::Fatal(_) => MembershipError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => MembershipError::NotLeader {
            leader: to
                .leader_id
                .zip(to.leader_node)
                .map(|(id, node)| Leader { id: CoordinatorId(id), address: node.addr }),
        },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(err)) => match err {
            ChangeMembershipError::InProgress(_) => MembershipError::InProgress,
            ChangeMembershipError::LearnerNotFound(err) => {
                MembershipError::NotMember { id: CoordinatorId(err.node_id) }
            }
            ChangeMembershipError::EmptyMembership(err) => {
                MembershipError::Refused { reason: err.to_string() }
            }
        },
    }
}

impl Changes<'_> {
    fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    fn member(&self, id: CoordinatorId) -> Option<Member> {
        members(&self.metrics()).into_iter().find(|member| member.id == id)
    }

    /// A follower would otherwise answer with whatever it finds first.
    fn check_leads(&self) -> Result<(), MembershipError> {
        let leader = members(&self.metrics()).into_iter().find(|member| member.leader);
        match leader {
            Some(leader) if leader.id.0 == self.metrics().id => Ok(()),
            leader => {
                let leader = leader.map(|Member { id, address, .. }| Leader { id, address });
                Err(MembershipError::NotLeader { leader })
            }
        }
    }

    async fn change(
        &self,
        changes: ChangeMembers<u64, BasicNode>,
        retain: bool,
    ) -> Result<(), MembershipError> {
        self.check_leads()?;
        let change = self.raft.change_membership(changes, retain);
        let changed =
            tokio::time::timeout(self.deadline, change).await.map_err(|_| MembershipError::Unknown)?;
        changed.map(drop).map_err(change_error)
    }

    /// Adds a learner and waits until it has caught up. Asked again for the same member it only waits.
    pub(crate) async fn add_learner(&self, id: CoordinatorId, address: &str) -> Result<(), MembershipError> {
        match self.member(id) {
            Some(member) if member.address != address => {
                return Err(MembershipError::AlreadyMember { id, address: member.address });
            }
            Some(_) => {}
            None => {
                let nodes = BTreeMap::from([(id.0, BasicNode::new(address))]);
                self.change(ChangeMembers::AddNodes(nodes), true).await?;
            }
        }
        self.wait_caught_up(id).await
    }

    async fn wait_caught_up(&self, id: CoordinatorId) -> Result<(), MembershipError> {
        let mut metrics = self.raft.metrics();
        let caught_up = metrics.wait_for(|now| {
            let member = members(now).into_iter().find(|member| member.id == id);
            now.replication.is_none() || member.and_then(|member| is_caught_up(&member)).unwrap_or(false)
        });
        match tokio::time::timeout(self.deadline, caught_up).await {
            Ok(Ok(now)) if now.replication.is_some() => Ok(()),
            Ok(Ok(_)) => Err(MembershipError::NotLeader { leader: None }),
            Ok(Err(_)) => Err(MembershipError::Stopped),
            Err(_) => {
                let lag = self.member(id).and_then(|member| member.lag).unwrap_or(u64::MAX);
                Err(MembershipError::Lagging { id, lag })
            }
        }
    }

    pub(crate) async fn promote(&self, id: CoordinatorId) -> Result<(), MembershipError> {
        let member = self.member(id).ok_or(MembershipError::NotMember { id })?;
        if member.voter {
            return Ok(());
        }
        match is_caught_up(&member) {
            None => return Err(MembershipError::NotLeader { leader: None }),
            Some(false) => return Err(MembershipError::Lagging { id, lag: member.lag.unwrap_or(u64::MAX) }),
            Some(true) => {}
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0])), true).await
    }

    pub(crate) async fn remove(&self, id: CoordinatorId) -> Result<(), MembershipError> {
        // Gone already: a retry of what was done.
        let Some(member) = self.member(id) else { return Ok(()) };
        let ids = BTreeSet::from([id.0]);
        if !member.voter {
            return self.change(ChangeMembers::RemoveNodes(ids), true).await;
        }
        if members(&self.metrics()).iter().filter(|member| member.voter).count() == 1 {
            return Err(MembershipError::LastVoter { id });
        }
        self.change(ChangeMembers::RemoveVoters(ids), false).await
    }

    /// Completes a change of voters whose second entry was never written.
    pub(crate) async fn finish_joint(&self) -> Result<bool, MembershipError> {
        let metrics = self.metrics();
        let configs = metrics.membership_config.membership().get_joint_config();
        let [_, .., wanted] = configs.as_slice() else { return Ok(false) };
        self.change(ChangeMembers::ReplaceAllVoters(wanted.clone()), false).await.map(|()| true)
    }
}

/// `None` where nobody knows, because this is not the leader.
fn is_caught_up(member: &Member) -> Option<bool> {
    Some(member.matched.is_some() && member.lag? <= CAUGHT_UP_ENTRIES)
}
