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

/// One rank's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    pub rank: u32,
    /// BLAKE3 of the shard's bytes.
    pub root: Digest,
    pub size_bytes: u64,
    pub holders: Vec<Holder>,
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
    /// Read back since the seal: an attempt restored from it.
    pub proven: bool,
    pub pinned: bool,
    /// Why it was quarantined or aborted.
    pub reason: Option<String>,
}

impl Checkpoint {
    /// Recency among sealed ones: not the clock, and not the step alone (a deliberate roll-back must win).
    pub fn recency(&self) -> (u64, u64, u64, u64) {
        (self.attempt.generation, self.attempt.number, self.step, self.seq.0)
    }
    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size_bytes).sum()
    }
    pub fn is_sealed(&self) -> bool {
        self.state == CheckpointState::Sealed
    }
}
