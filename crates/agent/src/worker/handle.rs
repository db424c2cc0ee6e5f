//! What the agent's loop, the worker's API and its savers share about one worker. Decisions are the loop's; here is
//! only what each call of the worker needs without waiting for the loop.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use outlast_control::plan::SaveCost;
use outlast_types::BootTime;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::folder::WorkerDir;
use super::save::Saved;
use super::slots::Slots;
use super::staged::Settled;
use crate::assigned::{Assigned, WorkerKey};
use crate::due::CheckpointDue;

/// A call is repeated for its newest save or the one before.
const SAVED_KEPT: usize = 4;

/// What the supervisor wants of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    /// Counts the requests, so that each is told once.
    pub(crate) checkpoints_asked: u64,
    /// Of those, how many a save has fulfilled.
    pub(crate) checkpoints_done: u64,
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
    /// One save is written at a time, so that a repeated call finds what the first one wrote.
    pub(crate) save_turn: tokio::sync::Mutex<()>,
    /// What the newest save cost.
    pub(crate) save_cost: Mutex<Option<SaveCost>>,
    /// Where it stages its checkpoints.
    pub(crate) slots: Slots,
    /// Saves from memory are begun one at a time.
    pub(crate) begin_turn: tokio::sync::Mutex<()>,
    /// The newest saves, oldest first, with their steps.
    saved: Mutex<VecDeque<(u64, Saved)>>,
    /// What became of the newest saves from memory, oldest first.
    settled: watch::Sender<VecDeque<(u64, Settled)>>,
}

impl WorkerHandle {
    /// `slots`: the folder in memory for those of this node's workers; `None`: this machine has none that would do.
    pub(crate) fn new(
        dir: WorkerDir,
        slots: Option<&Path>,
        assigned: Assigned,
        now: BootTime,
        cancel: CancellationToken,
    ) -> Self {
        let memory = slots.map(|dir| dir.join(assigned.key.file_name()));
        let slots = Slots::new(assigned.key.attempt, memory, dir.slots(), assigned.memory_bytes);
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
            save_turn: tokio::sync::Mutex::new(()),
            save_cost: Mutex::default(),
            slots,
            begin_turn: tokio::sync::Mutex::new(()),
            saved: Mutex::default(),
            settled: watch::Sender::default(),
        }
    }

    /// Takes the newest word of the cluster.
    pub(crate) fn update(&self, assigned: Assigned) {
        let asked = assigned.checkpoint_now && !self.assigned.borrow().checkpoint_now;
        self.due.lock().follow(assigned.checkpoint_every_ms, assigned.checkpoint_every_steps);
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

    /// A save begins. Returns the requests that it fulfils once it has succeeded.
    pub(crate) fn save_begun(&self, step: u64, now: BootTime) -> u64 {
        self.due.lock().save_begun(step, now);
        self.wishes.borrow().checkpoints_asked
    }

    pub(crate) fn save_done(&self, step: u64, saved: Saved, fulfils: u64) {
        let mut newest = self.saved.lock();
        newest.retain(|(other, _)| *other != step);
        if newest.len() == SAVED_KEPT {
            newest.pop_front();
        }
        newest.push_back((step, saved));
        drop(newest);
        self.wishes.send_modify(|wishes| wishes.checkpoints_done = wishes.checkpoints_done.max(fulfils));
    }

    /// The request stays open: whoever waits for the checkpoint still does.
    pub(crate) fn save_failed(&self, fulfils: u64) {
        if self.wishes.borrow().checkpoints_done < fulfils {
            self.due.lock().ask();
        }
    }

    /// What an earlier call for this step has saved.
    pub(crate) fn saved_at(&self, step: u64) -> Option<Saved> {
        self.saved.lock().iter().find(|(other, _)| *other == step).map(|(_, saved)| *saved)
    }

    /// A save from memory has come to its end.
    pub(crate) fn settle(&self, step: u64, settled: Settled) {
        self.settled.send_modify(|newest| {
            newest.retain(|(other, _)| *other != step);
            if newest.len() == SAVED_KEPT {
                newest.pop_front();
            }
            newest.push_back((step, settled));
        });
    }

    pub(crate) fn settled_at(&self, step: u64) -> Option<Settled> {
        self.settled.borrow().iter().find(|(other, _)| *other == step).map(|(_, settled)| settled.clone())
    }

    pub(crate) fn settled_changes(&self) -> watch::Receiver<VecDeque<(u64, Settled)>> {
        self.settled.subscribe()
    }

    /// The step is saved anew.
    pub(crate) fn forget_settled(&self, step: u64) {
        self.settled.send_modify(|newest| newest.retain(|(other, _)| *other != step));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assigned::sample;

    fn handle() -> WorkerHandle {
        let dir = WorkerDir::at("/w".into());
        WorkerHandle::new(dir, None, sample("j1/0@1.1", 0), BootTime(0), CancellationToken::new())
    }

    #[test]
    fn a_failed_save_leaves_the_request_open_and_a_good_one_fulfils_those_from_before_it() {
        let handle = handle();
        handle.update(Assigned { checkpoint_now: true, ..sample("j1/0@1.1", 0) });
        let fulfils = handle.save_begun(7, BootTime(1));
        assert!(!handle.due.lock().is_due(7, BootTime(1)));
        handle.save_failed(fulfils);
        assert!(handle.due.lock().is_due(7, BootTime(1)), "still wanted");
        let fulfils = handle.save_begun(8, BootTime(2));
        handle.update(Assigned { checkpoint_now: false, ..sample("j1/0@1.1", 0) });
        handle.update(Assigned { checkpoint_now: true, ..sample("j1/0@1.1", 0) });
        let saved = Saved {
            seq: outlast_types::CheckpointSeq(3),
            root: outlast_types::Digest([1; 32]),
            size_bytes: 5,
        };
        handle.save_done(8, saved, fulfils);
        let wishes = *handle.wishes.borrow();
        assert_eq!(
            (wishes.checkpoints_asked, wishes.checkpoints_done),
            (2, 1),
            "a later request is a new one"
        );
        assert_eq!(handle.saved_at(8).map(|saved| saved.seq), Some(saved.seq));
        for step in 9..20 {
            handle.save_done(step, saved, fulfils);
        }
        assert!(handle.saved_at(8).is_none() && handle.saved_at(19).is_some(), "bounded");
    }
}
