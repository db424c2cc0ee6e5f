//! All that can happen to an agent, in one queue: the loop takes one event at a time, so that decisions have an order.

use outlast_process::{Adopted, ExitFile, Keeper};
use outlast_proto::node::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{BootTime, CheckpointSeq, Digest};
use tokio::sync::oneshot;

use crate::assigned::WorkerKey;
use crate::session::SessionEvent;
use crate::upkeep::UpkeepEvent;

/// Events waiting: each worker has a handful in its life, and who sends more waits for the loop.
pub(crate) const EVENTS_MAX: usize = 1_024;

#[derive(Debug)]
pub(crate) enum Event {
    Session(SessionEvent),
    /// The answer to a heartbeat that went to a second coordinator.
    Hedged(Result<pb::LeaseGrant, Failure>),
    Start(WorkerKey, StartEvent),
    /// What became of a worker whose keeper did not answer at first.
    Adopted(WorkerKey, Adopted),
    /// The keeper's record; `None`: the keeper is gone, and all of its worker was killed.
    Exited(WorkerKey, Option<ExitFile>),
    /// What could not be killed of an ended worker is gone at last.
    Freed(WorkerKey),
    /// The worker, or the check of its port, says that it can serve.
    Ready(WorkerKey),
    /// About the shards on this node's disk.
    Upkeep(UpkeepEvent),
    Stop(StopWorkers, oneshot::Sender<()>),
}

/// How a worker's start goes on.
#[derive(Debug)]
pub(crate) enum StartEvent {
    BundleHeld(Digest),
    Rendezvous(String),
    Restored(CheckpointSeq),
    RestoreFailed {
        seq: CheckpointSeq,
        corrupt: bool,
        reason: String,
    },
    /// Asked just before the keeper starts: the lease deadline if the lease still allows it (A2).
    MaySpawn(oneshot::Sender<Option<BootTime>>),
    Started(Keeper),
    Failed(String),
    /// It was stopped before it began.
    Cancelled,
}

/// What a shutdown of the agent does to its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWorkers {
    /// They go on under their keepers, and the next agent adopts them: an upgrade of the agent costs nothing.
    No,
    /// They are stopped and their end is waited for.
    Yes,
}
