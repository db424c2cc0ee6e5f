//! The state machine: the applied [`ClusterState`] in memory, rebuilt from the newest snapshot and the log.
//!
//! Written by openraft's state machine task alone; everybody else reads under the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, BasicNode, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageIOError,
};
use outlast_control::state::{
    ClusterState, DecodeError, Envelope, Event, Response, decode_batch, encode_state,
};
use outlast_types::WallTime;
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};

use crate::snapshot::{SnapshotData, SnapshotHead, Snapshots};
use crate::types::{Entry, LogId, StorageError, StoredMembership, TypeConfig};

/// Watchers that fall this many entries behind read the state again.
const EVENTS_KEPT: usize = 4_096;

/// What one log entry changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedEntry {
    pub index: u64,
    pub events: Vec<Event>,
    /// The proposing leader's wall clock.
    pub at: WallTime,
    /// The state was replaced by a snapshot up to `index`: whatever a watcher derived from events has to be read again.
    pub replaced: bool,
}

pub(crate) struct Applied {
    pub(crate) state: ClusterState,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

pub(crate) struct Shared {
    pub(crate) applied: RwLock<Applied>,
    pub(crate) index: watch::Sender<u64>,
    pub(crate) events: broadcast::Sender<Arc<AppliedEntry>>,
    /// Log bytes applied since the last snapshot, for the trigger by size.
    pub(crate) bytes_since_snapshot: AtomicU64,
}

#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: Snapshots,
}

fn machine_error(source: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::write_state_machine(AnyError::new(&source)).into()
}

fn snapshot_error(source: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(&source)).into()
}

fn is_full(err: &std::io::Error) -> bool {
    matches!(err.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

impl Machine {
    pub(crate) fn new(snapshots: Snapshots, newest: Option<(SnapshotHead, ClusterState)>) -> Self {
        let applied = match newest {
            Some((head, state)) => Applied { state, last: head.last_log, membership: head.membership },
            None => {
                Applied { state: ClusterState::new(), last: None, membership: StoredMembership::default() }
            }
        };
        let (index, _) = watch::channel(applied.last.map_or(0, |last| last.index));
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let shared =
            Shared { applied: RwLock::new(applied), index, events, bytes_since_snapshot: AtomicU64::new(0) };
        Self { shared: Arc::new(shared), snapshots }
    }

    pub(crate) fn apply_entry(&self, entry: Entry) -> Result<Vec<Response>, DecodeError> {
        let index = entry.log_id.index;
        let batch = match &entry.payload {
            EntryPayload::Normal(batch) => {
                self.shared.bytes_since_snapshot.fetch_add(batch.0.len() as u64, Ordering::Relaxed);
                decode_batch(&batch.0)?
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
        };
        let (responses, events) = {
            let mut applied = self.shared.applied.write();
            let done = apply_batch(&mut applied.state, index, &batch);
            applied.state.applied = index;
            applied.last = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            done
        };
        if !events.is_empty() {
            let at = batch.last().map_or(WallTime::default(), |envelope| envelope.at);
            // Without watchers there is nobody to tell.
            let _ = self.shared.events.send(Arc::new(AppliedEntry { index, events, at, replaced: false }));
        }
        Ok(responses)
    }
}

fn apply_batch(state: &mut ClusterState, index: u64, batch: &[Envelope]) -> (Vec<Response>, Vec<Event>) {
    let mut responses = Vec::with_capacity(batch.len());
    let mut events = Vec::new();
    for envelope in batch {
        let (response, caused) = state.apply(index, envelope);
        responses.push(response);
        events.extend(caused);
    }
    (responses, events)
}

/// A consistent view of the state, taken between two entries: its bytes, which need a third of the memory of a copy.
pub(crate) struct SnapshotBuilder {
    machine: Machine,
    head: SnapshotHead,
    body: Vec<u8>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (snapshots, head) = (self.machine.snapshots.clone(), self.head.clone());
        let body = std::mem::take(&mut self.body);
        let write = move || snapshots.write(&head, &body);
        let written = outlast_host::blocking(write).await.map_err(snapshot_error)?;
        match (written, self.machine.snapshots.current()) {
            // An error would end the process, and the one that it has serves as well; the ticker asks again.
            (Err(err), Some(before)) if is_full(&err) => {
                tracing::error!(%err, "no room for a snapshot: the one before stays, and the log grows");
                Ok(before)
            }
            (written, _) => written.map_err(snapshot_error),
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.shared.applied.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<Response>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        let mut last = None;
        for entry in entries {
            last = Some(entry.log_id.index);
            replies.push(self.apply_entry(entry).map_err(machine_error)?);
        }
        if let Some(last) = last {
            self.shared.index.send_replace(last);
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.shared.bytes_since_snapshot.store(0, Ordering::Relaxed);
        let applied = self.shared.applied.read();
        let head = self.snapshots.head(applied.last, applied.membership.clone());
        SnapshotBuilder { machine: self.clone(), head, body: encode_state(&applied.state) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        self.snapshots.incoming().map(Box::new).map_err(snapshot_error)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let snapshots = self.snapshots.clone();
        let installed = outlast_host::blocking(move || snapshots.install(&snapshot)).await;
        let (head, state) = installed.map_err(snapshot_error)?.map_err(snapshot_error)?;
        debug_assert_eq!(head.last_log, meta.last_log_id, "the file is the one that was announced");
        let index = head.last_log.map_or(0, |last| last.index);
        *self.shared.applied.write() = Applied { state, last: head.last_log, membership: head.membership };
        self.shared.bytes_since_snapshot.store(0, Ordering::Relaxed);
        self.shared.index.send_replace(index);
        let told = AppliedEntry { index, events: Vec::new(), at: WallTime::default(), replaced: true };
        // Without watchers there is nobody to tell.
        let _ = self.shared.events.send(Arc::new(told));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        Ok(self.snapshots.current())
    }
}
