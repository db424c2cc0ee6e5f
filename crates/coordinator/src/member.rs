//! A coordinator that belongs to a cluster: what its services, sessions and leader tasks share.
//!
//! Owns nothing that must survive: the truth is in the log, and the leader's memory belongs to its [`Office`].

use std::sync::Arc;

use outlast_consensus::Consensus;
use outlast_control::state::ClusterState;
use outlast_proto::status::Failure;
use outlast_proto::view::LeaderNotes;
use outlast_types::{ClusterId, CoordinatorId, Profile, Timers};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Deadline;
use crate::disk::DiskWatch;
use crate::events::EventRing;
use crate::leader::Office;
use crate::limits::READ_DEADLINE;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::read::ReadGate;
use crate::relay::HeartbeatRelay;

pub(crate) struct Member {
    pub(crate) consensus: Consensus,
    pub(crate) id: CoordinatorId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) profile: Profile,
    pub(crate) timers: Timers,
    pub(crate) peers: Peers,
    pub(crate) reads: ReadGate,
    pub(crate) heartbeats: HeartbeatRelay,
    pub(crate) events: EventRing,
    /// Set while this coordinator leads and its barrier is committed.
    pub(crate) office: watch::Sender<Option<Arc<Office>>>,
    pub(crate) notes_cache: Mutex<Option<(Deadline, LeaderNotes)>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) disk: Arc<DiskWatch>,
    pub(crate) shutdown: CancellationToken,
}

impl Member {
    pub(crate) fn office(&self) -> Option<Arc<Office>> {
        self.office.borrow().clone()
    }

    pub(crate) fn leads(&self) -> bool {
        self.consensus.leadership().borrow().is_self
    }

    /// The leader's address, where one is known and it is not this coordinator.
    pub(crate) fn other_leader(&self) -> Option<String> {
        let leadership = self.consensus.leadership();
        let leadership = leadership.borrow();
        if leadership.is_self {
            return None;
        }
        leadership.leader.as_ref().map(|leader| leader.address.clone())
    }

    /// This coordinator's own applied state, however old it may be.
    pub(crate) fn state<T>(&self, look: impl FnOnce(&ClusterState) -> T) -> T {
        self.consensus.read(look)
    }

    /// Waits until the own state is at least as new as the moment of the call.
    pub(crate) async fn confirm_read(&self) -> Result<(), Failure> {
        let deadline = Deadline::after(READ_DEADLINE);
        let index = self.reads.confirm(deadline).await?;
        self.wait_applied(index, deadline).await
    }

    /// Waits until the own state has the entry at `index`.
    pub(crate) async fn wait_applied(&self, index: u64, deadline: Deadline) -> Result<(), Failure> {
        let mut applied = self.consensus.applied();
        let reached =
            async { applied.wait_for(|applied| *applied >= index).await.map(|_| ()).map_err(|_| stopping()) };
        match tokio::time::timeout(deadline.left(), reached).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Unavailable {
                reason: format!("coordinator {} has not applied entry {index} yet", self.id),
                hint: "ask another coordinator".to_owned(),
                retry_after_ms: 200,
            }),
        }
    }

    pub(crate) fn check_cluster(&self, cluster_id: &str) -> Result<(), Failure> {
        if cluster_id == self.cluster_id.as_str() {
            return Ok(());
        }
        Err(Failure::Denied {
            reason: format!(
                "this coordinator belongs to cluster {}, the caller to {cluster_id:?}",
                self.cluster_id
            ),
            hint: "check the addresses: two clusters are mixed up".to_owned(),
        })
    }
}

pub(crate) fn stopping() -> Failure {
    Failure::Unavailable {
        reason: "this coordinator is stopping".to_owned(),
        hint: "ask another coordinator".to_owned(),
        retry_after_ms: 500,
    }
}

pub(crate) fn no_leader() -> Failure {
    Failure::Unavailable {
        reason: "the coordinators have no leader at the moment".to_owned(),
        hint: "an election takes a second or two; if this lasts, look at `outlast cluster status`: a majority of \
               coordinators must be running"
            .to_owned(),
        retry_after_ms: 500,
    }
}
