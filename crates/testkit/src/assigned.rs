//! What the cluster wants of a node, as the agent's reconciliation knows it. The agent's own types are bound to the wire
//! and to the disk; these have the fields that decide something, so that `agent/src/reconcile.rs` is compiled here as it is.

use outlast_control::state::ShardTask;
use outlast_types::{AttemptId, CheckpointSeq, Digest, JobId, JobKind, Millis, NodeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkerKey {
    pub(crate) attempt: AttemptId,
    pub(crate) rank: u32,
}

/// One rank's part of a checkpoint, as disks name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShardKey {
    pub(crate) attempt: AttemptId,
    pub(crate) seq: CheckpointSeq,
    pub(crate) rank: u32,
}

impl ShardKey {
    pub(crate) fn job(&self) -> JobId {
        self.attempt.group.job
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestoreFrom {
    pub(crate) shard: ShardKey,
    pub(crate) root: Digest,
    pub(crate) holders: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) key: WorkerKey,
    pub(crate) world_size: u32,
    /// `Some(grace)`: stop it, and never start it.
    pub(crate) stop: Option<Millis>,
    pub(crate) kind: JobKind,
    pub(crate) exclusive: bool,
    pub(crate) has_rendezvous: bool,
    pub(crate) restore: Option<RestoreFrom>,
    pub(crate) every_steps: u64,
    pub(crate) steps: u64,
    pub(crate) checkpoint_now: bool,
    pub(crate) replica_peers: Vec<NodeId>,
    pub(crate) replicas: usize,
    pub(crate) may_start: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    pub(crate) task: ShardTask,
    pub(crate) shard: ShardKey,
    pub(crate) root: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardOrder {
    pub(crate) key: OrderKey,
    pub(crate) holders: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Desired {
    pub(crate) index: u64,
    pub(crate) workers: Vec<Assigned>,
    pub(crate) orders: Vec<ShardOrder>,
}

/// For the tests of `reconcile.rs`, which run here too.
#[cfg(test)]
pub(crate) fn sample(attempt: &str, rank: u32) -> Assigned {
    Assigned {
        key: WorkerKey { attempt: attempt.parse().expect("valid"), rank },
        world_size: 1,
        stop: None,
        kind: JobKind::Training,
        exclusive: false,
        has_rendezvous: true,
        restore: None,
        every_steps: 0,
        steps: 0,
        checkpoint_now: false,
        replica_peers: Vec::new(),
        replicas: 1,
        may_start: true,
    }
}
