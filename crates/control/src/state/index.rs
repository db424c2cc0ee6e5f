//! What can be derived from the state but is asked too often to be searched for: who holds what on a node, what it was
//! told to do with shards, which jobs still need attention, which names are taken, what failed lately. Never stored:
//! rebuilt when a state is decoded, kept up by `apply`.

use std::collections::{BTreeMap, BTreeSet};

use outlast_types::{AttemptId, CauseClass, CheckpointSeq, JobId, NodeId, WallTime};

use super::{Attempt, ClusterState, Job, ShardTask};

/// One order: which rank of which checkpoint, and what.
pub(crate) type OrderKey = (JobId, CheckpointSeq, u32, ShardTask);

/// Derived from `ClusterState::jobs`; a planner pass and a heartbeat cost what is active, not what is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Index {
    /// Held assignments by node.
    pub(crate) held: BTreeMap<NodeId, BTreeSet<(AttemptId, u32)>>,
    /// What nodes were told to do with shards.
    pub(crate) orders: BTreeMap<NodeId, BTreeSet<OrderKey>>,
    /// Held assignments of a job, counted.
    held_count: BTreeMap<JobId, usize>,
    /// Jobs that are not final, or that still hold something.
    pub(crate) active: BTreeSet<JobId>,
    /// Unfinished jobs by name.
    pub(crate) names: BTreeMap<String, JobId>,
    /// Finished jobs by the time at which they may leave.
    pub(crate) expiring: BTreeSet<(WallTime, JobId)>,
    /// Attempts that failed, of finished jobs too, by the time at which they began to stop.
    pub(crate) failures: BTreeSet<(WallTime, AttemptId)>,
}

/// When the attempt failed, if it did: nobody wanted it to stop.
fn failed_at(attempt: &Attempt) -> Option<WallTime> {
    let is_failure = attempt.cause.as_ref().is_some_and(|cause| cause.class() != CauseClass::Wanted);
    attempt.stopping_at.filter(|_| is_failure)
}

impl Index {
    pub(crate) fn hold(&mut self, node: &NodeId, attempt: AttemptId, rank: u32) {
        if self.held.entry(node.clone()).or_default().insert((attempt, rank)) {
            *self.held_count.entry(attempt.group.job).or_default() += 1;
            self.active.insert(attempt.group.job);
        }
    }

    pub(crate) fn let_go(&mut self, node: &NodeId, attempt: AttemptId, rank: u32) {
        let Some(held) = self.held.get_mut(node) else { return };
        if !held.remove(&(attempt, rank)) {
            return;
        }
        if held.is_empty() {
            self.held.remove(node);
        }
        let job = attempt.group.job;
        if let Some(count) = self.held_count.get_mut(&job) {
            *count -= 1;
            if *count == 0 {
                self.held_count.remove(&job);
            }
        }
    }

    pub(crate) fn order(&mut self, node: &NodeId, key: OrderKey) {
        self.orders.entry(node.clone()).or_default().insert(key);
    }

    pub(crate) fn unorder(&mut self, node: &NodeId, key: &OrderKey) {
        let Some(orders) = self.orders.get_mut(node) else { return };
        orders.remove(key);
        if orders.is_empty() {
            self.orders.remove(node);
        }
    }

    pub(crate) fn held_by(&self, job: JobId) -> usize {
        self.held_count.get(&job).copied().unwrap_or(0)
    }

    /// Sets what follows from the job's state. Called whenever that, or what the job holds, has changed.
    pub(crate) fn file(&mut self, job: &Job) {
        let Some(finished_at) = job.finished_at.filter(|_| job.state.is_final()) else {
            self.active.insert(job.id);
            self.names.insert(job.spec.name.clone(), job.id);
            return;
        };
        if self.names.get(&job.spec.name) == Some(&job.id) {
            self.names.remove(&job.spec.name);
        }
        self.expiring.insert((finished_at.plus(job.spec.retention.millis()), job.id));
        if self.held_by(job.id) == 0 {
            self.active.remove(&job.id);
        } else {
            self.active.insert(job.id);
        }
    }

    /// Called when an attempt begins to stop; what it is charged to later does not make it another failure.
    pub(crate) fn note_failure(&mut self, attempt: &Attempt) {
        if let Some(at) = failed_at(attempt) {
            self.failures.insert((at, attempt.id));
        }
    }

    /// The attempt leaves the history.
    pub(crate) fn forget_failure(&mut self, attempt: &Attempt) {
        if let Some(at) = attempt.stopping_at {
            self.failures.remove(&(at, attempt.id));
        }
    }

    pub(crate) fn forget(&mut self, job: &Job) {
        for attempt in job.groups.iter().flat_map(|group| &group.attempts) {
            self.forget_failure(attempt);
        }
        if let Some(finished_at) = job.finished_at {
            self.expiring.remove(&(finished_at.plus(job.spec.retention.millis()), job.id));
        }
        if self.names.get(&job.spec.name) == Some(&job.id) {
            self.names.remove(&job.spec.name);
        }
        self.active.remove(&job.id);
    }
}

impl ClusterState {
    /// The index as the jobs say it must be.
    pub(crate) fn derive_index(&self) -> Index {
        let mut index = Index::default();
        for job in self.jobs.values() {
            for attempt in job.groups.iter().flat_map(|group| &group.attempts) {
                for assignment in attempt.assignments.iter().filter(|assignment| assignment.is_held()) {
                    index.hold(&assignment.node, attempt.id, assignment.rank);
                }
                index.note_failure(attempt);
            }
            for checkpoint in job.checkpoints.values() {
                for shard in &checkpoint.shards {
                    for order in &shard.orders {
                        index.order(&order.node, (job.id, checkpoint.seq, shard.rank, order.task));
                    }
                }
            }
            index.file(job);
        }
        index
    }
}
