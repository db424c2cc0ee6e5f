//! Membership changes that somebody left in their middle are completed by whoever leads.
//!
//! A removal is two writes: the record that takes the id away for ever, then the change of voters. A leader that goes
//! between them leaves a voter that the status calls removed and whose machine may be wiped by then: it counts for every
//! quorum and never votes again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outlast_proto::control::v1::ClusterStatusRequest;
use outlast_types::CoordinatorId;

use crate::limits::TRY_DEADLINE;
use crate::member::Member;
use crate::peers::call;

const JOINT_TRIES_MAX: u32 = 60;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Never ends: a removal may be interrupted at any time of an office.
pub(super) async fn finish(member: Arc<Member>) {
    finish_joint(&member).await;
    let mut seen = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let ghosts = ghosts(&member);
        // One that was not there at the look before is being removed by somebody right now.
        for id in ghosts.intersection(&seen) {
            if !leaves_a_quorum(&member, *id).await {
                tracing::warn!(coordinator = %id, "a removal is not completed yet: too few of the others answer");
                continue;
            }
            match tokio::time::timeout(TRY_DEADLINE, member.consensus.remove(*id)).await {
                Ok(Ok(())) => tracing::warn!(coordinator = %id, "an interrupted removal was completed"),
                Ok(Err(error)) => tracing::debug!(%error, "an interrupted removal is tried again"),
                Err(_) => tracing::debug!("an interrupted removal takes long"),
            }
        }
        seen = ghosts;
    }
}

/// A change of voters that a predecessor left between its two entries.
async fn finish_joint(member: &Member) {
    for _ in 0..JOINT_TRIES_MAX {
        match tokio::time::timeout(TRY_DEADLINE, member.consensus.finish_joint()).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::debug!(%error, "an unfinished membership change is tried again"),
            Err(_) => tracing::debug!("an unfinished membership change takes long"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tracing::warn!("a membership change could not be finished; the next leader tries again");
}

/// Whether most of the others are there: without the ghost, which may be alive, they alone have to agree on everything.
async fn leaves_a_quorum(member: &Member, ghost: CoordinatorId) -> bool {
    let others = member.consensus.members().into_iter().filter(|known| known.voter && known.id != ghost);
    let answers = others.map(|known| async move {
        if known.id == member.id {
            return true;
        }
        let Ok(mut control) = member.peers.control(&known.address) else { return false };
        call(ANSWER_WITHIN, control.cluster_status(ClusterStatusRequest {})).await.is_ok()
    });
    let answers = futures::future::join_all(answers).await;
    let there = answers.iter().filter(|is_there| **is_there).count();
    2 * there > answers.len()
}

/// Members of the consensus whose record says that they were removed.
fn ghosts(member: &Member) -> BTreeSet<CoordinatorId> {
    let members: Vec<CoordinatorId> = member.consensus.members().into_iter().map(|known| known.id).collect();
    member.state(|state| {
        let is_removed = |id: &CoordinatorId| state.coordinators.get(id).is_some_and(|record| record.removed);
        members.into_iter().filter(is_removed).collect()
    })
}

#[cfg(test)]
mod tests {
    use outlast_control::state::Command;
    use outlast_types::Actor;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::limits::WRITE_DEADLINE;
    use crate::propose::envelope;
    use crate::{Coordinator, CoordinatorConfig, RunningCoordinator};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn start(folder: &std::path::Path, join: Vec<String>) -> RunningCoordinator {
        let config = CoordinatorConfig {
            data_dir: folder.to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            disk_load_test: false,
            init: join.is_empty(),
            join,
            ..CoordinatorConfig::default()
        };
        Coordinator::start(config, CancellationToken::new()).await.expect("it starts")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removal_that_was_only_recorded_is_completed() {
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let first = start(folders[0].path(), Vec::new()).await;
        let second = start(folders[1].path(), vec![first.address.to_string()]).await;
        let leader = first.seat.member().expect("it belongs to a cluster");
        let ghost = second.seat.member().expect("it joined").id;
        assert_eq!(leader.consensus.members().len(), 2);

        // The first of the two writes, and nobody there for the second.
        let removal = Command::RemoveCoordinator { coordinator: ghost };
        let recorded =
            leader.change(envelope(Actor::System, None, None, removal), WRITE_DEADLINE).await.map(drop);
        recorded.expect("recorded");
        let completed = tokio::time::timeout(PATIENCE, async {
            while leader.consensus.members().iter().any(|known| known.id == ghost) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        completed.await.expect("who leads completes it");
    }
}
