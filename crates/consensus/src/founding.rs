//! The founding of a cluster: the first membership, then the first command. The founder's identity says that it is one,
//! so that a crash in between is made good at the next start.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::BasicNode;
use outlast_control::state::{Command, Envelope};
use outlast_types::{Actor, Profile};
use tokio::sync::watch;

use crate::batcher::Batcher;
use crate::clock::wall_now;
use crate::error::ProposeError;
use crate::folder::Identity;
use crate::leadership::Leadership;
use crate::machine::Machine;
use crate::types::Raft;

const RETRY: Duration = Duration::from_millis(100);

/// Does what is left of the founding: the first membership, then the first command. After a crash in between it goes on.
pub(crate) async fn finish_founding(
    raft: Raft,
    machine: Machine,
    batcher: Batcher,
    mut leadership: watch::Receiver<Leadership>,
    identity: Identity,
    profile: Profile,
) {
    let members = BTreeMap::from([(identity.coordinator.0, BasicNode::new(&identity.advertise))]);
    if !raft.is_initialized().await.unwrap_or(true)
        && let Err(err) = raft.initialize(members).await
    {
        tracing::error!(%err, "the new cluster could not be made");
        return;
    }
    let envelope = || Envelope {
        request: None,
        actor: Actor::System,
        source: None,
        cause: None,
        at: wall_now(),
        command: Command::InitCluster {
            cluster_id: identity.cluster_id.clone(),
            profile,
            address: identity.advertise.clone(),
        },
    };
    loop {
        if leadership.wait_for(|now| now.is_self).await.is_err() {
            return;
        }
        // A restarted founder is here too: what is committed but not yet applied must not be proposed again.
        if raft.ensure_linearizable().await.is_ok() {
            if machine.shared.applied.read().state.config.is_some() {
                return;
            }
            match batcher.propose(envelope()).await {
                Ok(_) | Err(ProposeError::Stopped) => return,
                Err(err) => {
                    tracing::warn!(%err, "the first command of the new cluster did not pass; trying again")
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
