//! What heartbeats carry beside the proof of life: the leader's soft state.

use std::collections::BTreeMap;

use outlast_control::plan::NodeHealth;
use outlast_control::state::{Holder, Tier};
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
}

impl From<ReportedProgress> for pb::Progress {
    fn from(progress: ReportedProgress) -> Self {
        let ReportedProgress { attempt, rank, step, metrics } = progress;
        Self { attempt: attempt.to_string(), rank, step, metrics: metrics.into_iter().collect() }
    }
}

impl TryFrom<pb::Progress> for ReportedProgress {
    type Error = FieldError;

    fn try_from(progress: pb::Progress) -> Result<Self, FieldError> {
        let pb::Progress { attempt, rank, step, metrics } = progress;
        Ok(Self {
            attempt: parse("progress.attempt", &attempt)?,
            rank,
            step,
            metrics: metrics.into_iter().collect(),
        })
    }
}

impl From<NodeHealth> for pb::Health {
    fn from(health: NodeHealth) -> Self {
        let NodeHealth { disk_canary_age_ms, loop_lag_ms, disk_free_bytes, disk_size_bytes, gpu_error } =
            health;
        Self { disk_canary_age_ms, loop_lag_ms, disk_free_bytes, disk_size_bytes, gpu_error }
    }
}

impl From<pb::Health> for NodeHealth {
    fn from(health: pb::Health) -> Self {
        let pb::Health { disk_canary_age_ms, loop_lag_ms, disk_free_bytes, disk_size_bytes, gpu_error } =
            health;
        Self { disk_canary_age_ms, loop_lag_ms, disk_free_bytes, disk_size_bytes, gpu_error }
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
        let ReportedReceipt { attempt, seq, rank, staged, root, size_bytes, holders, no_more_holders } =
            receipt;
        Self {
            attempt: attempt.to_string(),
            checkpoint: seq.to_string(),
            rank,
            staged,
            root: root.map(|root| root.0.to_vec()).unwrap_or_default(),
            size_bytes,
            holders: holders.into_iter().map(Into::into).collect(),
            no_more_holders,
        }
    }
}

impl TryFrom<pb::Receipt> for ReportedReceipt {
    type Error = FieldError;

    fn try_from(receipt: pb::Receipt) -> Result<Self, FieldError> {
        let pb::Receipt { attempt, checkpoint, rank, staged, root, size_bytes, holders, no_more_holders } =
            receipt;
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
        })
    }
}
