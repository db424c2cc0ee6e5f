//! What the leader's tasks tell each other and the services: conditions, health, steps, why groups wait. Written by one task
//! each, read by anybody, gone with the office.

use std::collections::BTreeMap;

use outlast_control::plan::NodeHealth;
use outlast_proto::view::LeaderNotes;
use outlast_types::{AttemptId, GroupId, NodeId};
use parking_lot::RwLock;
use tokio::sync::Notify;

/// Step and metrics of one rank.
pub(crate) type Progress = (u64, BTreeMap<String, f64>);

#[derive(Debug, Default)]
pub(crate) struct Board {
    /// By the lease task: ready or suspect, by their heartbeats alone.
    conditions: RwLock<BTreeMap<NodeId, String>>,
    /// By the lease task, of registered nodes. A node whose health is complained of gets nothing new either.
    health: RwLock<BTreeMap<NodeId, NodeHealth>>,
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
        self.health.write().retain(|node, _| conditions.contains_key(node));
        if *self.conditions.read() == conditions {
            return;
        }
        *self.conditions.write() = conditions;
        self.conditions_changed.notify_one();
    }

    /// What a heartbeat said. `Some`: the node gets nothing new from now on for this reason, or does so again.
    pub(crate) fn note_health(&self, node: &NodeId, health: Option<NodeHealth>) -> Option<Option<String>> {
        let complaint = health.as_ref().and_then(NodeHealth::complaint);
        let before = match health {
            Some(health) => self.health.write().insert(node.clone(), health),
            None => self.health.write().remove(node),
        };
        let was_ailing = before.is_some_and(|before| before.complaint().is_some());
        if was_ailing == complaint.is_some() {
            return None;
        }
        self.conditions_changed.notify_one();
        Some(complaint)
    }

    /// The nodes whose health keeps new work away, with what is wrong.
    pub(crate) fn ailing(&self) -> BTreeMap<NodeId, String> {
        let health = self.health.read();
        health.iter().filter_map(|(node, health)| Some((node.clone(), health.complaint()?))).collect()
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
        let mut conditions = self.conditions.read().clone();
        conditions.extend(self.ailing().into_keys().map(|node| (node, "suspect".to_owned())));
        LeaderNotes {
            conditions,
            health: self.health.read().clone(),
            progress: self.progress.read().clone(),
            waiting: self.waiting.read().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    #[test]
    fn bad_health_makes_a_node_suspect_and_is_told_when_it_comes_and_when_it_goes() {
        let board = Board::default();
        let conditions = BTreeMap::from([(node("a"), "ready".to_owned()), (node("b"), "ready".to_owned())]);
        board.set_conditions(conditions.clone());
        let full = NodeHealth { disk_free_bytes: 1, disk_size_bytes: 1 << 40, ..NodeHealth::default() };
        let told = board.note_health(&node("a"), Some(full.clone())).expect("news").expect("a complaint");
        assert!(told.contains("its disk is full"), "{told}");
        let fuller = NodeHealth { disk_free_bytes: 0, ..full.clone() };
        assert_eq!(board.note_health(&node("a"), Some(fuller)), None, "no news");
        assert_eq!(board.ailing().into_keys().collect::<Vec<_>>(), [node("a")]);
        assert!(board.suspects().is_empty(), "its lease is another matter");
        assert_eq!(board.notes().conditions[&node("a")], "suspect");
        assert_eq!(board.notes().conditions[&node("b")], "ready");
        assert_eq!(board.note_health(&node("a"), None), Some(None));
        assert!(board.note_health(&node("a"), Some(full)).is_some());
        board.set_conditions(BTreeMap::from([(node("b"), "ready".to_owned())]));
        assert!(board.ailing().is_empty(), "a node that is gone is forgotten");
    }
}
