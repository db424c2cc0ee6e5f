//! What the agent's session tells its loop, as in `agent/src/event.rs`; of the workers' events the simulated loop has none.

use outlast_proto::node::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::CheckpointSeq;

use crate::assigned::WorkerKey;
use crate::session::SessionEvent;

#[derive(Debug)]
pub(crate) enum Event {
    Session(SessionEvent),
    /// The answer to a heartbeat that went to a second coordinator.
    Hedged(Result<pb::LeaseGrant, Failure>),
    /// The log's answer to a worker that wants to save at this step.
    Opened(WorkerKey, u64, Option<CheckpointSeq>),
}
