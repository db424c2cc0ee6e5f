//! What the leader's tasks tell each other and the services: conditions, steps, why groups wait. Written by one task
//! each, read by anybody, gone with the office.

use std::collections::BTreeMap;

use outlast_proto::view::LeaderNotes;
use outlast_types::{AttemptId, GroupId, NodeId};
use parking_lot::RwLock;
use tokio::sync::Notify;

/// Step and metrics of one rank.
pub(crate) type Progress = (u64, BTreeMap<String, f64>);

#[derive(Debug, Default)]
pub(crate) struct Board {
    /// By the lease task: ready or suspect.
    conditions: RwLock<BTreeMap<NodeId, String>>,
    /// By the planner task.
    progress: RwLock<BTreeMap<(AttemptId, u32), Progress>>,
    /// By the planner task.
    waiting: RwLock<BTreeMap<GroupId, String>>,
    /// Why the leader holds back, where it does (L5).
    holding: RwLock<Option<String>>,
    /// Wakes the planner when a condition changed.
    pub(crate) conditions_changed: Notify,
}

impl Board {
    pub(crate) fn set_conditions(&self, conditions: BTreeMap<NodeId, String>) {
        if *self.conditions.read() == conditions {
            return;
        }
        *self.conditions.write() = conditions;
        self.conditions_changed.notify_one();
    }

    /// The nodes that are not ready.
    pub(crate) fn suspects(&self) -> std::collections::BTreeSet<NodeId> {
        let conditions = self.conditions.read();
        conditions.iter().filter(|(_, word)| *word != "ready").map(|(node, _)| node.clone()).collect()
    }

    pub(crate) fn set_waiting(&self, waiting: BTreeMap<GroupId, String>) {
        *self.waiting.write() = waiting;
    }

    pub(crate) fn note_progress(&self, attempt: AttemptId, rank: u32, progress: Progress) {
        self.progress.write().insert((attempt, rank), progress);
    }

    pub(crate) fn keep_progress(&self, keep: impl Fn(&AttemptId) -> bool) {
        self.progress.write().retain(|(attempt, _), _| keep(attempt));
    }

    pub(crate) fn set_holding(&self, holding: Option<String>) {
        *self.holding.write() = holding;
    }

    pub(crate) fn holding(&self) -> Option<String> {
        self.holding.read().clone()
    }

    pub(crate) fn notes(&self) -> LeaderNotes {
        LeaderNotes {
            conditions: self.conditions.read().clone(),
            progress: self.progress.read().clone(),
            waiting: self.waiting.read().clone(),
        }
    }
}
