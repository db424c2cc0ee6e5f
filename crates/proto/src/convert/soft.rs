//! What heartbeats carry beside the proof of life: the leader's soft state.

use std::collections::BTreeMap;

use outlast_control::plan::{NodeHealth, SaveCost};
use outlast_control::state::{Holder, ShardTask, Tier};
use outlast_types::{AttemptId, CheckpointSeq, Digest};

use super::{FieldError, parse};
use crate::node::v1 as pb;

/// A rank's newest step.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportedProgress {
    pub attempt: AttemptId,
    pub rank: u32,
    pub step: u64,
    pub metrics: BTreeMap<String, f64>,
    /// `None` before the first save.
    pub save_cost: Option<SaveCost>,
}

/// Where a rank's part of a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedReceipt {
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub rank: u32,
    /// The bytes are in the agent's hands.
    pub staged: bool,
    /// `None` while only staged.
    pub root: Option<Digest>,
    pub size_bytes: u64,
    pub holders: Vec<Holder>,
    /// No further copy can be made at present.
    pub no_more_holders: bool,
    /// Why this rank's part will never come.
    pub failed: Option<String>,
}

/// An order about a shard that its node has carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportedDone {
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub rank: u32,
    pub task: ShardTask,
}

/// A task by its word on the wire.
///
/// # Errors
/// A word that this build does not know.
pub fn shard_task(word: &str) -> Result<ShardTask, FieldError> {
    let known = [ShardTask::Copy, ShardTask::Prove, ShardTask::Store];
    let found = known.into_iter().find(|task| task.as_str() == word);
    found.ok_or_else(|| FieldError::new("task", format!("{word:?} is not copy, prove or store")))
}

impl From<ReportedDone> for pb::ShardDone {
    fn from(done: ReportedDone) -> Self {
        let ReportedDone { attempt, seq, rank, task } = done;
        let (attempt, checkpoint) = (attempt.to_string(), seq.to_string());
        Self { attempt, checkpoint, rank, task: task.as_str().to_owned() }
    }
}

impl TryFrom<pb::ShardDone> for ReportedDone {
    type Error = FieldError;

    fn try_from(done: pb::ShardDone) -> Result<Self, FieldError> {
        let pb::ShardDone { attempt, checkpoint, rank, task } = done;
        Ok(Self {
            attempt: parse("done.attempt", &attempt)?,
            seq: parse("done.checkpoint", &checkpoint)?,
            rank,
            task: shard_task(&task)?,
        })
    }
}

impl From<ReportedProgress> for pb::Progress {
    fn from(progress: ReportedProgress) -> Self {
        let ReportedProgress { attempt, rank, step, metrics, save_cost } = progress;
        let SaveCost { stall_ms, write_ms } = save_cost.unwrap_or_default();
        Self {
            attempt: attempt.to_string(),
            rank,
            step,
            metrics: metrics.into_iter().collect(),
            save_stall_ms: stall_ms,
            save_write_ms: write_ms,
        }
    }
}

impl TryFrom<pb::Progress> for ReportedProgress {
    type Error = FieldError;

    fn try_from(progress: pb::Progress) -> Result<Self, FieldError> {
        let pb::Progress { attempt, rank, step, metrics, save_stall_ms, save_write_ms } = progress;
        let cost = SaveCost { stall_ms: save_stall_ms, write_ms: save_write_ms };
        Ok(Self {
            attempt: parse("progress.attempt", &attempt)?,
            rank,
            step,
            metrics: metrics.into_iter().collect(),
            save_cost: Some(cost).filter(|cost| *cost != SaveCost::default()),
        })
    }
}

impl From<NodeHealth> for pb::Health {
    fn from(health: NodeHealth) -> Self {
        let NodeHealth {
            disk_canary_age_ms,
            loop_lag_ms,
            disk_free_bytes,
            disk_size_bytes,
            gpu_error,
            network_bytes_per_s,
            network_error,
        } = health;
        Self {
            disk_canary_age_ms,
            loop_lag_ms,
            disk_free_bytes,
            disk_size_bytes,
            gpu_error,
            network_bytes_per_s,
            network_error,
        }
    }
}

impl From<pb::Health> for NodeHealth {
    fn from(health: pb::Health) -> Self {
        let pb::Health {
            disk_canary_age_ms,
            loop_lag_ms,
            disk_free_bytes,
            disk_size_bytes,
            gpu_error,
            network_bytes_per_s,
            network_error,
        } = health;
        Self {
            disk_canary_age_ms,
            loop_lag_ms,
            disk_free_bytes,
            disk_size_bytes,
            gpu_error,
            network_bytes_per_s,
            network_error,
        }
    }
}

impl From<Holder> for pb::Holder {
    fn from(holder: Holder) -> Self {
        let Holder { node, boot, disk, tier: Tier::Disk } = holder;
        Self { node: node.to_string(), boot_id: boot.to_string(), disk_id: disk.to_string() }
    }
}

impl TryFrom<pb::Holder> for Holder {
    type Error = FieldError;

    fn try_from(holder: pb::Holder) -> Result<Self, FieldError> {
        let pb::Holder { node, boot_id, disk_id } = holder;
        Ok(Self {
            node: parse("holder.node", &node)?,
            boot: parse("holder.boot_id", &boot_id)?,
            disk: parse("holder.disk_id", &disk_id)?,
            tier: Tier::Disk,
        })
    }
}

impl From<ReportedReceipt> for pb::Receipt {
    fn from(receipt: ReportedReceipt) -> Self {
        let ReportedReceipt {
            attempt,
            seq,
            rank,
            staged,
            root,
            size_bytes,
            holders,
            no_more_holders,
            failed,
        } = receipt;
        Self {
            attempt: attempt.to_string(),
            checkpoint: seq.to_string(),
            rank,
            staged,
            root: root.map(|root| root.0.to_vec()).unwrap_or_default(),
            size_bytes,
            holders: holders.into_iter().map(Into::into).collect(),
            no_more_holders,
            failed: failed.unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::Receipt> for ReportedReceipt {
    type Error = FieldError;

    fn try_from(receipt: pb::Receipt) -> Result<Self, FieldError> {
        let pb::Receipt {
            attempt,
            checkpoint,
            rank,
            staged,
            root,
            size_bytes,
            holders,
            no_more_holders,
            failed,
        } = receipt;
        let root = match root.as_slice() {
            [] => None,
            bytes => Some(Digest::try_from(bytes).map_err(|error| FieldError::new("receipt.root", error))?),
        };
        Ok(Self {
            attempt: parse("receipt.attempt", &attempt)?,
            seq: parse("receipt.checkpoint", &checkpoint)?,
            rank,
            staged,
            root,
            size_bytes,
            holders: holders.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            no_more_holders,
            failed: Some(failed).filter(|reason| !reason.is_empty()),
        })
    }
}
