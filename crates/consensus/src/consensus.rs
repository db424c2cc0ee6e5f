//! The handle that the rest of the coordinator holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use outlast_control::state::{ClusterState, Command, Envelope};
use outlast_proto::raft::v1::raft_service_server::RaftServiceServer;
use outlast_types::{ClusterId, CoordinatorId, Timers};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, watch};

use crate::batcher::{Applied, Batcher, Rounds};
use crate::config::Limits;
use crate::disk::SyncTimes;
use crate::error::{MembershipError, NotAppliedInTime, ProposeError, QuorumError};
use crate::folder::{DiskRoom, Folder};
use crate::leadership::{Fitness, Leader, Leadership, QuorumClock};
use crate::log::LogWriter;
use crate::machine::{AppliedEntry, Machine};
use crate::members::{self, Changes, Member};
use crate::net::{MESSAGE_BYTES_MAX, RaftHandler};
use crate::status::RaftStatus;
use crate::types::{Metrics, Raft};

/// Between two tries of a quorum round that a slow follower made fail.
const QUORUM_RETRY: Duration = Duration::from_millis(10);

/// One coordinator's part in the cluster. Cheap to clone; ends with [`Consensus::shutdown`] or when the last clone goes.
#[derive(Clone)]
pub struct Consensus {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: CoordinatorId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) timers: Timers,
    pub(crate) limits: Limits,
    pub(crate) raft: Raft,
    pub(crate) machine: Machine,
    pub(crate) batcher: Batcher,
    pub(crate) rounds: Arc<Rounds>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) quorum: Arc<QuorumClock>,
    pub(crate) room: Arc<RwLock<DiskRoom>>,
    pub(crate) probe: SyncTimes,
    pub(crate) probe_loaded: watch::Receiver<Option<SyncTimes>>,
    pub(crate) fitness: watch::Receiver<Fitness>,
    pub(crate) writer: Arc<LogWriter>,
    pub(crate) log_bytes: Arc<std::sync::atomic::AtomicU64>,
    pub(crate) stopped: Arc<AtomicBool>,
    /// openraft's tasks run here, away from the API's.
    pub(crate) threads: Mutex<Option<outlast_host::Threads>>,
    /// Released when the writer has let go of the disk.
    pub(crate) folder: Mutex<Option<Folder>>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus")
            .field("id", &self.inner.id)
            .field("cluster_id", &self.inner.cluster_id)
            .finish()
    }
}

impl Consensus {
    pub fn id(&self) -> CoordinatorId {
        self.inner.id
    }

    pub fn cluster_id(&self) -> &ClusterId {
        &self.inner.cluster_id
    }

    pub fn timers(&self) -> &Timers {
        &self.inner.timers
    }

    /// The service that the other coordinators call; to be added to this one's server.
    pub fn raft_service(&self) -> RaftServiceServer<RaftHandler> {
        let inner = &self.inner;
        let (snapshots, room) = (inner.machine.snapshots.clone(), Arc::clone(&inner.room));
        let handler =
            RaftHandler::new(inner.raft.clone(), inner.cluster_id.clone(), inner.id.0, snapshots, room);
        RaftServiceServer::new(handler)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Proposes a command and waits until it is applied here. Only the leader takes proposals.
    ///
    /// # Errors
    /// See [`ProposeError`]; after [`ProposeError::Unknown`] the command may or may not take effect.
    pub async fn propose(&self, envelope: Envelope) -> Result<Applied, ProposeError> {
        self.admit(&envelope.command)?;
        self.inner.batcher.propose(envelope).await
    }

    /// Whether a proposal may be taken now, before openraft (whose queues are unbounded) hears of it. A barrier needs no
    /// room: it is small, and a leader without it could not even renew leases.
    fn admit(&self, command: &Command) -> Result<(), ProposeError> {
        if self.inner.stopped.load(Ordering::Relaxed) {
            return Err(ProposeError::Stopped);
        }
        let leader = self.leader_elsewhere();
        if let Some(leader) = leader {
            return Err(ProposeError::NotLeader { leader });
        }
        // Cut off from the majority, it would take proposals that can only time out.
        if self.inner.quorum.age_ms() > self.inner.timers.election_max_ms {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let room = *self.inner.room.read();
        if room.is_short() && !matches!(command, Command::Barrier { .. }) {
            let DiskRoom { free_bytes, needed_bytes } = room;
            return Err(ProposeError::DiskFull { free_bytes, needed_bytes });
        }
        Ok(())
    }

    /// `None` when this coordinator leads, else the leader as far as it is known.
    fn leader_elsewhere(&self) -> Option<Option<Leader>> {
        let leadership = self.inner.leadership.borrow();
        (!leadership.is_self).then(|| leadership.leader.clone())
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Confirms by a round that begins now that this coordinator leads, and returns the log index that a linearizable
    /// read has to wait for ([`Consensus::wait_applied`]). A proposal that was begun after the call and commits proves
    /// the same, and is taken where followers are too busy writing to answer an empty request.
    ///
    /// # Errors
    /// Not the leader, or no quorum within the deadline.
    pub async fn quorum_round(&self) -> Result<u64, QuorumError> {
        let deadline = self.inner.limits.quorum_deadline;
        if let Some(leader) = self.leader_elsewhere() {
            return Err(QuorumError::NotLeader { leader });
        }
        let begun = self.inner.rounds.begun();
        let mut committed = self.inner.rounds.committed.subscribe();
        let by_proposal = async move {
            // Taken out of the guard before anything else is awaited.
            let newest = committed.wait_for(|(number, _)| *number > begun).await.map(|newest| newest.1).ok();
            match newest {
                Some(index) => index,
                None => std::future::pending().await,
            }
        };
        let round = async {
            tokio::select! {
                round = self.read_rounds() => round,
                index = by_proposal => Ok(index),
            }
        };
        let waited_ms = deadline.as_millis() as u64;
        tokio::time::timeout(deadline, round).await.unwrap_or(Err(QuorumError::NoQuorum { waited_ms }))
    }

    /// Read rounds until one succeeds: openraft gives each a heartbeat interval only. Each begins after the call.
    async fn read_rounds(&self) -> Result<u64, QuorumError> {
        loop {
            match self.inner.raft.get_read_log_id().await {
                Ok((read, _)) => return Ok(read.map_or(0, |id| id.index)),
                Err(RaftError::Fatal(_)) => return Err(QuorumError::Stopped),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                    let leader = self.leader_elsewhere().flatten();
                    return Err(QuorumError::NotLeader { leader });
                }
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                    tokio::time::sleep(QUORUM_RETRY).await
                }
            }
        }
    }

    /// Looks at the applied state. The lock is held while `f` runs: keep it short, and never across an await.
    pub fn read<T>(&self, f: impl FnOnce(&ClusterState) -> T) -> T {
        f(&self.inner.machine.shared.applied.read().state)
    }

    /// The index of the newest applied entry.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.machine.shared.index.subscribe()
    }

    /// # Errors
    /// The index was not applied within the deadline.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), NotAppliedInTime> {
        let mut applied = self.applied();
        let waited = tokio::time::timeout(deadline, applied.wait_for(|applied| *applied >= index)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        drop(waited);
        let applied = *self.inner.machine.shared.index.borrow();
        Err(NotAppliedInTime { wanted: index, applied })
    }

    /// What entries change, in order. A receiver that lags (or sees `replaced`) has to read the state again.
    pub fn events(&self) -> broadcast::Receiver<Arc<AppliedEntry>> {
        self.inner.machine.shared.events.subscribe()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.inner.raft.metrics().borrow().clone()
    }

    pub fn members(&self) -> Vec<Member> {
        members::members(&self.metrics())
    }

    fn changes(&self) -> Changes<'_> {
        Changes { raft: &self.inner.raft, deadline: self.inner.limits.membership_deadline }
    }

    /// Adds a learner and waits until it has caught up.
    ///
    /// # Errors
    /// See [`MembershipError`]. After [`MembershipError::Lagging`] it is a member already; asking again waits again.
    pub async fn add_learner(&self, id: CoordinatorId, address: &str) -> Result<(), MembershipError> {
        if self.read(|state| state.coordinators.get(&id).is_some_and(|record| record.removed)) {
            return Err(MembershipError::IdReused { id });
        }
        self.changes().add_learner(id, address).await
    }

    /// Makes a caught-up learner a voter.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn promote(&self, id: CoordinatorId) -> Result<(), MembershipError> {
        self.changes().promote(id).await
    }

    /// Removes a learner or voter. Its id must never be used again: propose `RemoveCoordinator` too.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove(&self, id: CoordinatorId) -> Result<(), MembershipError> {
        self.changes().remove(id).await
    }

    /// Completes a change of voters that a crash interrupted; for the leader's loop. Says whether there was one.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn finish_joint(&self) -> Result<bool, MembershipError> {
        self.changes().finish_joint().await
    }

    /// Whether the voters are between two configurations.
    pub fn is_joint(&self) -> bool {
        self.metrics().membership_config.membership().get_joint_config().len() > 1
    }

    pub fn status(&self) -> RaftStatus {
        RaftStatus::of(self)
    }

    /// What the disk did beside checkpoint-like writes, once it is measured; ends without a value where it is not.
    pub fn probe_loaded(&self) -> watch::Receiver<Option<SyncTimes>> {
        self.inner.probe_loaded.clone()
    }

    /// Asks for a snapshot now; it is made in the background.
    pub async fn snapshot_now(&self) {
        // A core that has ended makes none, and says so elsewhere.
        let _ = self.inner.raft.trigger().snapshot().await;
    }

    /// Stops everything and lets go of the folder. Proposals in flight end as unknown.
    pub async fn shutdown(&self) {
        if self.inner.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(err) = self.inner.raft.shutdown().await {
            tracing::warn!(%err, "the Raft core did not end well");
        }
        let inner = Arc::clone(&self.inner);
        let closed = outlast_host::blocking(move || inner.close(true)).await;
        if let Err(err) = closed {
            tracing::warn!(%err, "closing the log failed");
        }
    }
}

impl Inner {
    /// `clean`: everything staged is synced and the high-water mark is written.
    pub(crate) fn close(&self, clean: bool) {
        self.stopped.store(true, Ordering::SeqCst);
        self.writer.stop(clean);
        *self.threads.lock() = None;
        self.folder.lock().take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(false);
    }
}
