//! A checkpoint is a sentence in the log about verified bytes.
//!
//! ```text
//!  OpenCheckpoint ──► Open ──SealCheckpoint──► Sealed ──RetireCheckpoint──► Retired (bytes may go)
//!                      └────AbortCheckpoint──► Aborted        Sealed ──QuarantineCheckpoint──► Quarantined (bytes kept)
//! ```

use outlast_types::{AttemptId, BootId, CheckpointSeq, Digest, DiskId, Durability, NodeId, WallTime};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointState {
    Open,
    Sealed,
    Aborted,
    Quarantined,
    Retired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Disk,
}

/// A place that has a shard's bytes, durable and verified.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    pub node: NodeId,
    pub boot: BootId,
    pub disk: DiskId,
    pub tier: Tier,
}

/// What a node is to do with one rank's part of a sealed checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardTask {
    /// Fetch a copy from a holder, and become one.
    Copy,
    /// Read the own copy back from the disk, past the page cache.
    Prove,
    /// Put the own copy into the object store.
    Store,
}

impl ShardTask {
    pub fn as_str(self) -> &'static str {
        match self {
            ShardTask::Copy => "copy",
            ShardTask::Prove => "prove",
            ShardTask::Store => "store",
        }
    }
}

/// A task and who was told to do it: in the log, so that it outlives leaders and sessions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardOrder {
    pub task: ShardTask,
    pub node: NodeId,
}

/// One rank's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    pub rank: u32,
    /// BLAKE3 of the shard's bytes.
    pub root: Digest,
    pub size_bytes: u64,
    pub holders: Vec<Holder>,
    /// What nodes were told to do with it; at most one of a kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<ShardOrder>,
    /// Nodes that could not make a copy, and when; the newest few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_copies: Vec<(NodeId, WallTime)>,
    /// Copies that failed since the last one that was made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub copies_failed: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl ShardRecord {
    /// Nodes that could not make a copy which are remembered for a shard.
    pub const FAILED_COPIES_MAX: usize = 8;

    /// Who was told to do this, if anybody.
    pub fn ordered(&self, task: ShardTask) -> Option<&NodeId> {
        self.orders.iter().find(|order| order.task == task).map(|order| &order.node)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub seq: CheckpointSeq,
    pub step: u64,
    pub attempt: AttemptId,
    /// Ranks of the attempt: taken from the attempt, never from the caller.
    pub world_size: u32,
    pub state: CheckpointState,
    pub opened_at: WallTime,
    pub sealed_at: Option<WallTime>,
    /// Empty until sealed.
    pub shards: Vec<ShardRecord>,
    /// BLAKE3 of the manifest's canonical bytes.
    pub manifest_root: Option<Digest>,
    /// What the seal achieved.
    pub durability: Option<Durability>,
    /// Sealed below the wanted level because too few nodes were alive.
    pub degraded: bool,
    /// Read back since the seal: from the disks, or by an attempt that restored from it.
    pub proven: bool,
    pub pinned: bool,
    /// Most ranks handed over the very bytes of the checkpoint before it: the program may be saving stale state.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stale: bool,
    /// When the object store had all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<WallTime>,
    /// Why it was quarantined or aborted.
    pub reason: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Checkpoint {
    /// Recency among sealed ones: not the clock, and not the step alone (a deliberate roll-back must win).
    pub fn recency(&self) -> (u64, u64, u64, u64) {
        (self.attempt.generation, self.attempt.number, self.step, self.seq.0)
    }
    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size_bytes).sum()
    }
    pub fn shard(&self, rank: u32) -> Option<&ShardRecord> {
        self.shards.get(rank as usize)
    }
    pub fn is_sealed(&self) -> bool {
        self.state == CheckpointState::Sealed
    }
}
