//! One run of a group, and where its ranks are.
//!
//! ```text
//!  StartAttempt          all ranks Started        StopAttempt / failure / cancel
//! ───────────► Starting ───────────────► Running ─────────────────────────────► Stopping
//!                  │  StopAttempt           │ all ranks exited 0                   │ EndAttempt (planner: salvage over)
//!                  └────────► Stopping      └────────────────────► Ended ◄─────────┘ or StartAttempt of the successor
//! ```
//! Where a checkpoint is still open when all ranks have exited with 0, the attempt goes through *Stopping* (cause
//! `Completed`) too, so that the last checkpoint of a training run can still be sealed.
//!
//! *Stopping* is still current: what was fully received can still be sealed. Assignments outlive their attempt: each is
//! held until the agent says `Released` or its node is Lost.

use outlast_types::{
    AttemptId, Cause, CheckpointSeq, ExitStatus, NodeId, RegistrationId, Resources, WallTime,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptPhase {
    Starting,
    Running,
    Stopping,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    Cancelled,
    /// Ended by a wanted move (drain, preemption).
    Moved,
}

/// How far down the recovery ladder the planner went for this attempt (design section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The group's first attempt.
    First,
    /// 1: restarted where it was.
    InPlace,
    /// 2: the failed rank moved, the others stayed.
    RankMoved,
    /// 3: the whole gang placed anew.
    Replaced,
}

/// Which checkpoint an attempt starts from, and what was passed over to get there.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestoreDecision {
    /// `None`: from the beginning.
    pub from: Option<CheckpointSeq>,
    /// Newer sealed checkpoints that were not taken, each with the reason.
    pub passed_over: Vec<(CheckpointSeq, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentPhase {
    /// In the log; the agent may not have heard of it.
    Assigned,
    /// The process runs.
    Started,
    /// The worker (or its check) said that it can serve.
    Ready,
    /// The process ended; its cgroup may not be empty yet.
    Exited,
    /// Stopped, and will never start: the resources are free.
    Released,
    /// The node is Lost: the resources are gone with it.
    Lost,
}

/// How a worker's process ended, with its last words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub status: ExitStatus,
    pub at: WallTime,
    /// What the agent adds for people, for example why a process did not start.
    pub detail: String,
    /// The last lines of its output, newest last; at most 16 KiB.
    pub last_lines: Vec<String>,
}

impl ExitRecord {
    /// The most bytes of last lines that a record keeps.
    pub const LAST_LINES_BYTES_MAX: usize = 16 << 10;
    /// The most last lines that a record keeps.
    pub const LAST_LINES_MAX: usize = 100;

    /// Cuts what is over the bounds, oldest lines first.
    pub fn bound(&mut self) {
        const DETAIL_BYTES_MAX: usize = 4 << 10;
        let mut end = self.detail.len().min(DETAIL_BYTES_MAX);
        while !self.detail.is_char_boundary(end) {
            end -= 1;
        }
        self.detail.truncate(end);
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len();
            bytes <= Self::LAST_LINES_BYTES_MAX
        };
        let kept = self.last_lines.iter().rev().take(Self::LAST_LINES_MAX).take_while(fits).count();
        self.last_lines.drain(..self.last_lines.len() - kept);
    }
}

/// One rank's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub rank: u32,
    pub node: NodeId,
    /// The registration that answers for the worker; a restarted agent that adopts it takes it over.
    pub registration: RegistrationId,
    pub resources: Resources,
    /// Indices of the GPUs that are its own.
    pub gpus: Vec<u32>,
    pub phase: AssignmentPhase,
    pub started_at: Option<WallTime>,
    pub exit: Option<ExitRecord>,
    /// Set when the rank said that it has loaded the attempt's checkpoint.
    pub restored: bool,
}

impl Assignment {
    /// Whether its resources are still taken.
    pub fn is_held(&self) -> bool {
        !matches!(self.phase, AssignmentPhase::Released | AssignmentPhase::Lost)
    }
    pub fn is_running(&self) -> bool {
        matches!(self.phase, AssignmentPhase::Started | AssignmentPhase::Ready)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub id: AttemptId,
    pub phase: AttemptPhase,
    pub rung: Rung,
    pub assignments: Vec<Assignment>,
    /// `host:port` that rank 0's agent reserved; the other ranks wait for it.
    pub rendezvous: Option<String>,
    pub restore: RestoreDecision,
    pub created_at: WallTime,
    /// When the last rank started.
    pub running_at: Option<WallTime>,
    pub stopping_at: Option<WallTime>,
    pub ended_at: Option<WallTime>,
    /// What ended it (or is ending it).
    pub cause: Option<Cause>,
    /// Further causes seen while it was stopping, oldest first; at most 8.
    pub later_causes: Vec<Cause>,
    pub outcome: Option<Outcome>,
    /// Ask workers to stop with SIGTERM and the job's grace (cancel, drain) instead of killing them at once (failure).
    pub graceful_stop: bool,
    /// Drain or preemption: the workers were asked for a checkpoint before the stop.
    pub checkpoint_requested: bool,
    /// A checkpoint with this number or a higher one was opened after that request.
    pub checkpoint_requested_from: Option<CheckpointSeq>,
    /// The newest step whose checkpoint was skipped, for all ranks alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_step: Option<u64>,
}

impl Attempt {
    pub fn is_current(&self) -> bool {
        self.phase != AttemptPhase::Ended
    }
    pub fn world_size(&self) -> u32 {
        self.assignments.len() as u32
    }
    /// The ranks that have not started, lowest first.
    pub fn waits_for(&self) -> impl Iterator<Item = &Assignment> {
        self.assignments.iter().filter(|seat| seat.started_at.is_none())
    }
    pub fn assignment(&self, rank: u32) -> Option<&Assignment> {
        self.assignments.get(rank as usize)
    }
}
