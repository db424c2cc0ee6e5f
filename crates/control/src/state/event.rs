//! What happened, in the past tense, for watchers and history.

use outlast_types::{AttemptId, Cause, CheckpointSeq, CoordinatorId, ExitStatus, JobId, NodeId};
use serde::{Deserialize, Serialize};

use super::{JobState, Outcome, Rung};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    ClusterInitialized,
    LeaderChanged { coordinator: CoordinatorId, incarnation: u64 },
    CoordinatorAdded { coordinator: CoordinatorId },
    CoordinatorRemoved { coordinator: CoordinatorId },
    NodeRegistered { node: NodeId },
    NodeLost { node: NodeId },
    NodeChanged { node: NodeId, what: String },
    JobSubmitted { job: JobId },
    JobChanged { job: JobId, state: JobState, reason: Option<String> },
    JobExpired { job: JobId },
    AttemptStarted { attempt: AttemptId, rung: Rung, restore_from: Option<CheckpointSeq> },
    RendezvousReady { attempt: AttemptId, address: String },
    WorkerStarted { attempt: AttemptId, rank: u32, node: NodeId },
    WorkerReady { attempt: AttemptId, rank: u32 },
    WorkerRestored { attempt: AttemptId, rank: u32, seq: CheckpointSeq },
    WorkerExited { attempt: AttemptId, rank: u32, node: NodeId, status: ExitStatus },
    WorkerReleased { attempt: AttemptId, rank: u32 },
    AttemptRunning { attempt: AttemptId },
    AttemptStopping { attempt: AttemptId, cause: Cause },
    AttemptEnded { attempt: AttemptId, outcome: Outcome },
    CheckpointRequested { attempt: AttemptId },
    CheckpointOpened { attempt: AttemptId, seq: CheckpointSeq, step: u64 },
    CheckpointSealed { job: JobId, seq: CheckpointSeq, step: u64 },
    CheckpointAborted { job: JobId, seq: CheckpointSeq, reason: String },
    CheckpointQuarantined { job: JobId, seq: CheckpointSeq, reason: String },
    CheckpointRetired { job: JobId, seq: CheckpointSeq },
    CheckpointPinned { job: JobId, seq: CheckpointSeq, pinned: bool },
}
