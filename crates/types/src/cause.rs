//! Why something happened: who asked for a change, and what ended an attempt.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// How a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// Killed by the kernel because its memory limit (or the machine's) was reached.
    OutOfMemory,
    /// The keeper died, so nobody saw how the process ended; the process was killed.
    KeeperLost,
    /// The process never started: the reason, for people.
    NotStarted,
    /// The keeper of an `exclusive` worker stopped it before the node's lease could be given away.
    Fenced,
}

impl ExitStatus {
    pub fn is_success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal(signal) => write!(f, "signal {signal}"),
            ExitStatus::OutOfMemory => f.write_str("out of memory"),
            ExitStatus::KeeperLost => f.write_str("keeper lost"),
            ExitStatus::NotStarted => f.write_str("not started"),
            ExitStatus::Fenced => f.write_str("stopped by its keeper (lease ran out)"),
        }
    }
}

/// What ended an attempt, or why a decision was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A worker of the attempt ended although it should not have.
    WorkerExited {
        rank: u32,
        node: NodeId,
        status: ExitStatus,
    },
    /// No step within the learned (or given) time, in milliseconds.
    Hang {
        rank: u32,
        silent_ms: u64,
    },
    NodeLost {
        node: NodeId,
    },
    /// The agent came back on a new boot, or without the worker: nothing of the attempt is left there.
    NodeRestarted {
        node: NodeId,
    },
    StartFailed {
        rank: u32,
        node: NodeId,
        reason: String,
    },
    RestoreFailed {
        rank: u32,
        node: NodeId,
        reason: String,
    },
    GpuError {
        rank: u32,
        node: NodeId,
        reason: String,
    },
    /// These ranks (and so many others) did not start in time, in milliseconds; nobody said why.
    StartTimeout {
        ranks: Vec<(u32, NodeId)>,
        others: u32,
        waited_ms: u64,
    },
    Drained {
        node: NodeId,
    },
    Preempted {
        node: NodeId,
    },
    /// The cluster was restored or recovered: nobody knows what became of the attempt meanwhile.
    ClusterRecovered,
    Cancelled,
    /// All ranks exited with 0.
    Completed,
}

/// Whose budget a failure is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseClass {
    /// The program's own fault, as far as one can tell: exit code, signal, out of memory, hang.
    User,
    /// Machines, networks, disks, us.
    Infrastructure,
    /// Somebody wanted it: drain, preemption, recovery of the cluster, cancel, completion. Charged to nobody.
    Wanted,
}

impl Cause {
    pub fn class(&self) -> CauseClass {
        match self {
            Cause::WorkerExited { status: ExitStatus::KeeperLost | ExitStatus::Fenced, .. } => {
                CauseClass::Infrastructure
            }
            Cause::WorkerExited { .. } | Cause::Hang { .. } | Cause::StartFailed { .. } => CauseClass::User,
            Cause::NodeLost { .. }
            | Cause::NodeRestarted { .. }
            | Cause::RestoreFailed { .. }
            | Cause::GpuError { .. }
            | Cause::StartTimeout { .. } => CauseClass::Infrastructure,
            Cause::Drained { .. }
            | Cause::Preempted { .. }
            | Cause::ClusterRecovered
            | Cause::Cancelled
            | Cause::Completed => CauseClass::Wanted,
        }
    }

    /// One word for metrics and tables.
    pub fn code(&self) -> &'static str {
        match self {
            Cause::WorkerExited { status: ExitStatus::OutOfMemory, .. } => "oom",
            Cause::WorkerExited { status: ExitStatus::Signal(_), .. } => "signal",
            Cause::WorkerExited { status: ExitStatus::KeeperLost, .. } => "keeper_lost",
            Cause::WorkerExited { status: ExitStatus::Fenced, .. } => "fenced",
            Cause::WorkerExited { .. } => "process_exit",
            Cause::Hang { .. } => "hang",
            Cause::NodeLost { .. } => "node_lost",
            Cause::NodeRestarted { .. } => "node_restarted",
            Cause::StartFailed { .. } => "start_failed",
            Cause::RestoreFailed { .. } => "restore_failed",
            Cause::GpuError { .. } => "gpu_error",
            Cause::StartTimeout { .. } => "start_timeout",
            Cause::Drained { .. } => "drained",
            Cause::Preempted { .. } => "preempted",
            Cause::ClusterRecovered => "cluster_recovered",
            Cause::Cancelled => "cancelled",
            Cause::Completed => "completed",
        }
    }

    /// The node that is to blame, where one is.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Cause::WorkerExited { node, .. }
            | Cause::NodeLost { node }
            | Cause::NodeRestarted { node }
            | Cause::StartFailed { node, .. }
            | Cause::RestoreFailed { node, .. }
            | Cause::GpuError { node, .. }
            | Cause::Drained { node }
            | Cause::Preempted { node } => Some(node),
            Cause::StartTimeout { ranks, others: 0, .. } => {
                let (_, node) = ranks.first()?;
                ranks.iter().all(|(_, other)| other == node).then_some(node)
            }
            Cause::StartTimeout { .. }
            | Cause::Hang { .. }
            | Cause::ClusterRecovered
            | Cause::Cancelled
            | Cause::Completed => None,
        }
    }

    /// The rank that the attempt failed at. Of several that did not start the first: the others may have waited for it.
    pub fn rank(&self) -> Option<u32> {
        match self {
            Cause::StartTimeout { ranks, .. } => ranks.first().map(|(rank, _)| *rank),
            Cause::WorkerExited { rank, .. }
            | Cause::Hang { rank, .. }
            | Cause::StartFailed { rank, .. }
            | Cause::RestoreFailed { rank, .. }
            | Cause::GpuError { rank, .. } => Some(*rank),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::WorkerExited { rank, node, status } => write!(f, "rank {rank} on {node} ended: {status}"),
            Cause::Hang { rank, silent_ms } => {
                write!(f, "rank {rank} reported no step for {:.1} s", *silent_ms as f64 / 1000.0)
            }
            Cause::NodeLost { node } => write!(f, "node {node} was lost: its lease ran out"),
            Cause::NodeRestarted { node } => write!(f, "node {node} came back without the worker"),
            Cause::StartFailed { rank, node, reason } => {
                write!(f, "rank {rank} could not start on {node}: {reason}")
            }
            Cause::RestoreFailed { rank, node, reason } => {
                write!(f, "rank {rank} could not restore on {node}: {reason}")
            }
            Cause::GpuError { rank, node, reason } => {
                write!(f, "GPU error at rank {rank} on {node}: {reason}")
            }
            Cause::StartTimeout { ranks, others, waited_ms } => {
                let ranks: Vec<String> =
                    ranks.iter().map(|(rank, node)| format!("rank {rank} on {node}")).collect();
                write!(f, "{}", ranks.join(", "))?;
                if *others > 0 {
                    write!(f, " and {others} others")?;
                }
                write!(f, " did not start within {:.0} s", *waited_ms as f64 / 1000.0)
            }
            Cause::Drained { node } => write!(f, "node {node} is being drained"),
            Cause::Preempted { node } => write!(f, "preempted on {node}"),
            Cause::ClusterRecovered => f.write_str("the cluster was recovered, and a new generation began"),
            Cause::Cancelled => f.write_str("cancelled"),
            Cause::Completed => f.write_str("completed"),
        }
    }
}

/// Who asked for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A person or program at the control API; the name is what the client says (no authentication yet).
    Operator(String),
    /// An agent, for its own node.
    Agent(NodeId),
    /// The leader's planner or lease table.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Operator(name) => write!(f, "operator {name}"),
            Actor::Agent(node) => write!(f, "agent {node}"),
            Actor::System => f.write_str("system"),
        }
    }
}
