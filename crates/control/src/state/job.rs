//! A job, its groups and their history.

use std::collections::{BTreeMap, VecDeque};

use outlast_types::{Actor, CheckpointSeq, Digest, GroupId, JobId, JobSpec, NodeId, RequestId, WallTime};
use serde::{Deserialize, Serialize};

use super::{Attempt, Checkpoint};

/// The files that a job brings along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub digest: Digest,
    pub size_bytes: u64,
    /// Nodes that have it.
    pub holders: Vec<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No group has an attempt yet.
    Pending,
    Running,
    /// Cancelled by somebody; workers are still being stopped.
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Pending => "pending",
            JobState::Running => "running",
            JobState::Cancelling => "cancelling",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

/// Failures charged to one class of causes since the last sign of progress.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailureBudget {
    pub since_progress: u32,
    pub total: u64,
}

/// Counters for attempts that left the full history.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupTotals {
    pub attempts: u64,
    /// By cause code.
    pub ended: BTreeMap<String, u64>,
}

/// An interval between checkpoints, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenInterval {
    pub every_ms: u64,
    /// How long a save keeps the slowest rank from training.
    pub cost_ms: u64,
    /// The mean time between failures that it was chosen for.
    pub mtbf_ms: u64,
    /// Failures in the group's history.
    pub failures: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub id: GroupId,
    /// Oldest first; the last one is the newest. Bounded by `Limits::attempts_kept`, but an attempt with held
    /// assignments never leaves.
    pub attempts: VecDeque<Attempt>,
    pub totals: GroupTotals,
    /// The number that the next attempt gets.
    pub next_number: u64,
    pub user_failures: FailureBudget,
    pub infrastructure_failures: FailureBudget,
    /// No new attempt before this time (leader's wall clock; a bound, not a safety rule).
    pub not_before: Option<WallTime>,
    /// How often it saves, where the job leaves that to us and something was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<ChosenInterval>,
    /// The group is over: its last attempt succeeded, or it was given up.
    pub done: bool,
}

impl Group {
    pub fn newest(&self) -> Option<&Attempt> {
        self.attempts.back()
    }
    /// The attempt that may act for the group, if there is one (invariant 22: at most one).
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.back().filter(|attempt| attempt.is_current())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub spec: JobSpec,
    pub request: RequestId,
    pub actor: Actor,
    pub submitted_at: WallTime,
    pub finished_at: Option<WallTime>,
    pub state: JobState,
    /// One of its groups was given up: the others are being stopped, then the job is `Failed`.
    pub failing: bool,
    /// Why it failed or was cancelled, in one sentence for people.
    pub reason: Option<String>,
    pub bundle: Option<Bundle>,
    pub groups: Vec<Group>,
    pub checkpoints: BTreeMap<CheckpointSeq, Checkpoint>,
    /// Never reused.
    pub next_checkpoint: u64,
}

impl Job {
    pub fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(index as usize)
    }
}
