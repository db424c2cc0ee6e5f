//! What the cluster agrees on: [`ClusterState`], changed only by [`ClusterState::apply`] of a [`Command`] in its
//! [`Envelope`], answered by a [`Response`], told to watchers as [`Event`]s.
//!
//! Data first: the modules named after things hold their fields; those under `apply/` one command's handling each.

mod apply;
mod attempt;
mod check;
mod checkpoint;
mod cluster;
mod codec;
mod command;
mod event;
mod index;
mod job;
mod levels;
mod node;
mod query;
mod remains;

pub use attempt::{
    Assignment, AssignmentPhase, Attempt, AttemptPhase, ExitRecord, Outcome, RestoreDecision, Rung,
};
pub use checkpoint::{Checkpoint, CheckpointState, Holder, ShardOrder, ShardRecord, ShardTask, Tier};
pub use cluster::{ClusterConfig, ClusterState, CoordinatorRecord, Incarnation, Limits};
pub use codec::{
    DecodeError, FORMAT_VERSION, decode_batch, decode_response, decode_state, encode_batch, encode_response,
    encode_state,
};
pub use command::{
    AdoptedWorker, Command, Envelope, Observation, Placed, Refusal, Registration, Response, SealedShard,
};
pub use event::Event;
pub use job::{Bundle, ChosenInterval, FailureBudget, Group, GroupTotals, Job, JobState};
pub use node::{Node, NodeCondition, NodeFeatures};
pub use remains::{FoundNode, FoundSeal, LeftOut, Lineage, Remains, Restored, RestoredJob, SealSource};
