//! What the agent's loop, the worker's API and its savers share about one worker. Decisions are the loop's; here is
//! only what each call of the worker needs without waiting for the loop.

use std::collections::BTreeMap;

use outlast_types::BootTime;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::folder::WorkerDir;
use crate::assigned::{Assigned, WorkerKey};
use crate::due::CheckpointDue;

/// What the supervisor wants of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    /// Counts the requests, so that each is told once.
    pub(crate) checkpoints_asked: u64,
    pub(crate) stop: bool,
    /// Its attempt is not the current one any more: it may save nothing.
    pub(crate) fenced: bool,
}

/// The newest step and what was measured with it.
pub(crate) type Progress = (u64, BTreeMap<String, f64>);

#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) key: WorkerKey,
    pub(crate) dir: WorkerDir,
    /// The newest word of the cluster: rendezvous, peers and restore may still come.
    pub(crate) assigned: watch::Sender<Assigned>,
    pub(crate) wishes: watch::Sender<Wishes>,
    pub(crate) progress: Mutex<Option<Progress>>,
    pub(crate) due: Mutex<CheckpointDue>,
    /// Ends what works for the worker (start, socket, ready check), not the worker. The agent's shutdown cancels it too.
    pub(crate) cancel: CancellationToken,
    /// Saves under way: its files stay until they are done.
    pub(crate) saves: TaskTracker,
}

impl WorkerHandle {
    pub(crate) fn new(dir: WorkerDir, assigned: Assigned, now: BootTime, cancel: CancellationToken) -> Self {
        let restored_step = assigned.restore.as_ref().map_or(0, |restore| restore.step);
        let due = CheckpointDue::new(
            assigned.checkpoint_every_ms,
            assigned.checkpoint_every_steps,
            now,
            restored_step,
        );
        Self {
            key: assigned.key,
            dir,
            assigned: watch::Sender::new(assigned),
            wishes: watch::Sender::new(Wishes::default()),
            progress: Mutex::new(None),
            due: Mutex::new(due),
            cancel,
            saves: TaskTracker::new(),
        }
    }

    /// Takes the newest word of the cluster.
    pub(crate) fn update(&self, assigned: Assigned) {
        let asked = assigned.checkpoint_now && !self.assigned.borrow().checkpoint_now;
        self.assigned.send_if_modified(|old| {
            let is_new = *old != assigned;
            *old = assigned;
            is_new
        });
        if asked {
            self.due.lock().ask();
            self.wishes.send_modify(|wishes| wishes.checkpoints_asked += 1);
        }
    }

    pub(crate) fn ask_to_stop(&self, fenced: bool) {
        self.wishes.send_modify(|wishes| {
            wishes.stop = true;
            wishes.fenced |= fenced;
        });
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.wishes.borrow().fenced
    }
}
