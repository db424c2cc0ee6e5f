//! What happened, in the past tense, for watchers and history.

use std::fmt;

use outlast_types::{
    AttemptId, Cause, CheckpointSeq, ClusterId, CoordinatorId, Durability, ExitStatus, GroupId, JobId, NodeId,
};
use serde::{Deserialize, Serialize};

use super::{JobState, Outcome, Rung};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    ClusterInitialized,
    GenerationOpened { generation: u64, cluster_id: ClusterId, reason: String },
    LeaderChanged { coordinator: CoordinatorId, incarnation: u64 },
    CoordinatorAdded { coordinator: CoordinatorId },
    CoordinatorRemoved { coordinator: CoordinatorId },
    FeatureLevelRaised { level: u32 },
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
    CheckpointStale { job: JobId, seq: CheckpointSeq, step: u64 },
    IntervalChosen { group: GroupId, every_ms: u64 },
    CheckpointProven { job: JobId, seq: CheckpointSeq },
    CheckpointRaised { job: JobId, seq: CheckpointSeq, durability: Durability },
    ShardCopyOrdered { job: JobId, seq: CheckpointSeq, rank: u32, node: NodeId },
    ShardCopied { job: JobId, seq: CheckpointSeq, rank: u32, node: NodeId },
    ShardCopyFailed { job: JobId, seq: CheckpointSeq, rank: u32, node: NodeId, reason: String },
    ShardDamaged { job: JobId, seq: CheckpointSeq, rank: u32, node: NodeId, reason: String },
}

impl Event {
    /// One word, past tense, snake case.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::ClusterInitialized => "cluster_initialized",
            Event::GenerationOpened { .. } => "generation_opened",
            Event::LeaderChanged { .. } => "leader_changed",
            Event::CoordinatorAdded { .. } => "coordinator_added",
            Event::CoordinatorRemoved { .. } => "coordinator_removed",
            Event::FeatureLevelRaised { .. } => "feature_level_raised",
            Event::NodeRegistered { .. } => "node_registered",
            Event::NodeLost { .. } => "node_lost",
            Event::NodeChanged { .. } => "node_changed",
            Event::JobSubmitted { .. } => "job_submitted",
            Event::JobChanged { .. } => "job_changed",
            Event::JobExpired { .. } => "job_expired",
            Event::AttemptStarted { .. } => "attempt_started",
            Event::RendezvousReady { .. } => "rendezvous_ready",
            Event::WorkerStarted { .. } => "worker_started",
            Event::WorkerReady { .. } => "worker_ready",
            Event::WorkerRestored { .. } => "worker_restored",
            Event::WorkerExited { .. } => "worker_exited",
            Event::WorkerReleased { .. } => "worker_released",
            Event::AttemptRunning { .. } => "attempt_running",
            Event::AttemptStopping { .. } => "attempt_stopping",
            Event::AttemptEnded { .. } => "attempt_ended",
            Event::CheckpointRequested { .. } => "checkpoint_requested",
            Event::CheckpointOpened { .. } => "checkpoint_opened",
            Event::CheckpointSealed { .. } => "checkpoint_sealed",
            Event::CheckpointAborted { .. } => "checkpoint_aborted",
            Event::CheckpointQuarantined { .. } => "checkpoint_quarantined",
            Event::CheckpointRetired { .. } => "checkpoint_retired",
            Event::CheckpointPinned { .. } => "checkpoint_pinned",
            Event::CheckpointStale { .. } => "checkpoint_stale",
            Event::IntervalChosen { .. } => "interval_chosen",
            Event::CheckpointProven { .. } => "checkpoint_proven",
            Event::CheckpointRaised { .. } => "checkpoint_raised",
            Event::ShardCopyOrdered { .. } => "shard_copy_ordered",
            Event::ShardCopied { .. } => "shard_copied",
            Event::ShardCopyFailed { .. } => "shard_copy_failed",
            Event::ShardDamaged { .. } => "shard_damaged",
        }
    }

    pub fn attempt(&self) -> Option<AttemptId> {
        match self {
            Event::AttemptStarted { attempt, .. }
            | Event::RendezvousReady { attempt, .. }
            | Event::WorkerStarted { attempt, .. }
            | Event::WorkerReady { attempt, .. }
            | Event::WorkerRestored { attempt, .. }
            | Event::WorkerExited { attempt, .. }
            | Event::WorkerReleased { attempt, .. }
            | Event::AttemptRunning { attempt }
            | Event::AttemptStopping { attempt, .. }
            | Event::AttemptEnded { attempt, .. }
            | Event::CheckpointRequested { attempt }
            | Event::CheckpointOpened { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    pub fn job(&self) -> Option<JobId> {
        match self {
            Event::JobSubmitted { job }
            | Event::JobChanged { job, .. }
            | Event::JobExpired { job }
            | Event::CheckpointSealed { job, .. }
            | Event::CheckpointAborted { job, .. }
            | Event::CheckpointQuarantined { job, .. }
            | Event::CheckpointRetired { job, .. }
            | Event::CheckpointPinned { job, .. }
            | Event::CheckpointStale { job, .. }
            | Event::CheckpointProven { job, .. }
            | Event::CheckpointRaised { job, .. }
            | Event::ShardCopyOrdered { job, .. }
            | Event::ShardCopied { job, .. }
            | Event::ShardCopyFailed { job, .. }
            | Event::ShardDamaged { job, .. } => Some(*job),
            Event::IntervalChosen { group, .. } => Some(group.job),
            other => other.attempt().map(|attempt| attempt.group.job),
        }
    }

    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Event::NodeRegistered { node }
            | Event::NodeLost { node }
            | Event::NodeChanged { node, .. }
            | Event::WorkerStarted { node, .. }
            | Event::WorkerExited { node, .. }
            | Event::ShardCopyOrdered { node, .. }
            | Event::ShardCopied { node, .. }
            | Event::ShardCopyFailed { node, .. }
            | Event::ShardDamaged { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    /// One sentence for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::ClusterInitialized => write!(f, "the cluster was made"),
            Event::GenerationOpened { generation, cluster_id, reason } => {
                write!(f, "generation {generation} was opened as cluster {cluster_id}: {reason}")
            }
            Event::LeaderChanged { coordinator, incarnation } => {
                write!(f, "{coordinator} leads (incarnation {incarnation})")
            }
            Event::CoordinatorAdded { coordinator } => {
                write!(f, "coordinator {coordinator} was given its id")
            }
            Event::CoordinatorRemoved { coordinator } => write!(f, "coordinator {coordinator} was removed"),
            Event::FeatureLevelRaised { level } => write!(f, "the cluster is at feature level {level} now"),
            Event::NodeRegistered { node } => write!(f, "node {node} registered"),
            Event::NodeLost { node } => write!(f, "node {node} was lost: its lease ran out"),
            Event::NodeChanged { node, what } => write!(f, "node {node}: {what}"),
            Event::JobSubmitted { job } => write!(f, "job {job} was submitted"),
            Event::JobChanged { job, state, reason: None } => write!(f, "job {job} is {}", state.as_str()),
            Event::JobChanged { job, state, reason: Some(why) } => {
                write!(f, "job {job} is {}: {why}", state.as_str())
            }
            Event::JobExpired { job } => {
                write!(f, "the record of job {job} was removed: its retention time is over")
            }
            Event::AttemptStarted { attempt, restore_from: None, .. } => {
                write!(f, "attempt {attempt} was placed; it starts from the beginning")
            }
            Event::AttemptStarted { attempt, restore_from: Some(seq), .. } => {
                write!(f, "attempt {attempt} was placed; it starts from {seq}")
            }
            Event::RendezvousReady { attempt, address } => write!(f, "attempt {attempt} meets at {address}"),
            Event::WorkerStarted { attempt, rank, node } => {
                write!(f, "rank {rank} of {attempt} runs on {node}")
            }
            Event::WorkerReady { attempt, rank } => write!(f, "rank {rank} of {attempt} is ready"),
            Event::WorkerRestored { attempt, rank, seq } => {
                write!(f, "rank {rank} of {attempt} restored {seq}")
            }
            Event::WorkerExited { attempt, rank, node, status } => {
                write!(f, "rank {rank} of {attempt} on {node} ended: {status}")
            }
            Event::WorkerReleased { attempt, rank } => {
                write!(f, "rank {rank} of {attempt} released its resources")
            }
            Event::AttemptRunning { attempt } => write!(f, "all ranks of {attempt} run"),
            Event::AttemptStopping { attempt, cause } => {
                write!(f, "attempt {attempt} is being stopped: {cause}")
            }
            Event::AttemptEnded { attempt, outcome } => write!(f, "attempt {attempt} ended: {outcome:?}"),
            Event::CheckpointRequested { attempt } => write!(f, "{attempt} was asked for a checkpoint"),
            Event::CheckpointOpened { attempt, seq, step } => {
                write!(f, "checkpoint {seq} of {attempt} was opened at step {step}")
            }
            Event::CheckpointSealed { job, seq, step } => {
                write!(f, "checkpoint {seq} of {job} was sealed at step {step}")
            }
            Event::CheckpointAborted { job, seq, reason } => {
                write!(f, "checkpoint {seq} of {job} was given up: {reason}")
            }
            Event::CheckpointQuarantined { job, seq, reason } => {
                write!(f, "checkpoint {seq} of {job} was quarantined: {reason}")
            }
            Event::CheckpointRetired { job, seq } => write!(f, "checkpoint {seq} of {job} was retired"),
            Event::CheckpointPinned { job, seq, pinned: true } => {
                write!(f, "checkpoint {seq} of {job} was pinned")
            }
            Event::CheckpointPinned { job, seq, pinned: false } => {
                write!(f, "checkpoint {seq} of {job} was unpinned")
            }
            Event::CheckpointStale { job, seq, step } => {
                write!(
                    f,
                    "checkpoint {seq} of {job} at step {step} has the very bytes of the one before it: does the program \
                     save what it trains?"
                )
            }
            Event::IntervalChosen { group, every_ms } => {
                write!(f, "group {group} saves every {:.0} s from now on", *every_ms as f64 / 1_000.0)
            }
            Event::CheckpointProven { job, seq } => {
                write!(f, "checkpoint {seq} of {job} was read back from the disks: it is proven")
            }
            Event::CheckpointRaised { job, seq, durability } => {
                write!(f, "checkpoint {seq} of {job} is {} now", durability.as_str())
            }
            Event::ShardCopyOrdered { job, seq, rank, node } => {
                write!(
                    f,
                    "node {node} was told to copy rank {rank} of {seq} of {job}: too few places have it"
                )
            }
            Event::ShardCopied { job, seq, rank, node } => {
                write!(f, "node {node} has a copy of rank {rank} of {seq} of {job}")
            }
            Event::ShardCopyFailed { job, seq, rank, node, reason } => {
                write!(f, "node {node} could not copy rank {rank} of {seq} of {job}: {reason}")
            }
            Event::ShardDamaged { job, seq, rank, node, reason } => {
                write!(f, "node {node} lost its copy of rank {rank} of {seq} of {job}: {reason}")
            }
        }
    }
}
