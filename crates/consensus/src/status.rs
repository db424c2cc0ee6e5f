//! One look at a coordinator's part in Raft, for `cluster status`, health and metrics.

use std::sync::atomic::Ordering;

use outlast_types::Millis;

use crate::consensus::Consensus;
use crate::disk::SyncTimes;
use crate::folder::DiskRoom;
use crate::leadership::{Fitness, Leader};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    pub term: u64,
    pub leader: Option<Leader>,
    pub is_leader: bool,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    /// `None` where this is not the leader.
    pub millis_since_quorum_ack: Option<Millis>,
    /// The log's syncs, as they happened: flush and fdatasync.
    pub sync: SyncTimes,
    /// fdatasync of small appends, measured when the folder was opened.
    pub probe: SyncTimes,
    /// The same beside checkpoint-like writes; `None` until it is measured, or where it is not.
    pub probe_loaded: Option<SyncTimes>,
    /// The log's disk has not answered for longer than any disk that can be lived with.
    pub disk_hangs: bool,
    pub log_bytes: u64,
    pub room: DiskRoom,
}

impl RaftStatus {
    pub(crate) fn of(consensus: &Consensus) -> Self {
        let inner = &consensus.inner;
        let metrics = consensus.metrics();
        let leadership = inner.leadership.borrow().clone();
        let index = |id: &Option<crate::types::LogId>| id.as_ref().map(|id| id.index);
        Self {
            term: metrics.current_term,
            millis_since_quorum_ack: leadership.is_self.then(|| inner.quorum.age_ms()),
            is_leader: leadership.is_self,
            leader: leadership.leader,
            last_log: metrics.last_log_index,
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            sync: inner.writer.meter.times(),
            probe: inner.probe,
            probe_loaded: *inner.probe_loaded.borrow(),
            disk_hangs: *inner.fitness.borrow() == Fitness::DiskHangs,
            log_bytes: inner.log_bytes.load(Ordering::Relaxed),
            room: *inner.room.read(),
        }
    }
}
