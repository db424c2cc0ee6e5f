//! What can be asked of the state, and what it answers.

use std::collections::BTreeMap;

use outlast_types::{
    Actor, AttemptId, BootId, Cause, CheckpointSeq, ClusterId, CoordinatorId, Digest, DiskId, Durability,
    GroupId, JobId, JobSpec, NodeId, NodeResources, Profile, RegistrationId, RequestId, WallTime,
};
use serde::{Deserialize, Serialize};

use super::{
    Bundle, ChosenInterval, ExitRecord, Holder, Incarnation, NodeFeatures, RestoreDecision, Rung, ShardTask,
};

/// A command with who, when, from where and why: the entry in the log is the audit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// A retry carries the same id and gets the same answer. Internal commands carry none.
    pub request: Option<RequestId>,
    pub actor: Actor,
    /// The address that the request came from, where there was one.
    pub source: Option<String>,
    /// For automatic decisions: the evidence, for people.
    pub cause: Option<String>,
    /// The proposing leader's wall clock.
    pub at: WallTime,
    pub command: Command,
}

/// Where the planner wants one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    pub rank: u32,
    pub node: NodeId,
    /// The registration that the planner saw; a newer one makes the command a conflict.
    pub registration: RegistrationId,
    pub gpus: Vec<u32>,
}

/// A worker that an agent found alive (its keeper answered) when it started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedWorker {
    pub attempt: AttemptId,
    pub rank: u32,
}

/// What an agent says of its node when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub node: NodeId,
    pub registration: RegistrationId,
    /// Grows with each registration of one data folder; zero: an agent that does not count them.
    #[serde(default, skip_serializing_if = "super::node::is_zero")]
    pub serial: u64,
    pub boot: BootId,
    pub disk: DiskId,
    pub address: String,
    /// See `Node::data_address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_address: Option<String>,
    pub resources: NodeResources,
    pub labels: BTreeMap<String, String>,
    pub features: NodeFeatures,
    pub feature_level: u32,
    /// Workers that still run: bound to this registration in the same entry (invariant 30). Every other assignment
    /// of the node that is not in `exited` counts as released: nothing of it is alive.
    pub adopted: Vec<AdoptedWorker>,
    /// Workers whose end was recorded on disk but not yet applied.
    pub exited: Vec<(AttemptId, u32, ExitRecord)>,
}

/// What an agent saw. Numbered per registration, resent until applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    /// Rank 0's agent reserved this `host:port`.
    Rendezvous {
        attempt: AttemptId,
        address: String,
    },
    Started {
        attempt: AttemptId,
        rank: u32,
    },
    Ready {
        attempt: AttemptId,
        rank: u32,
    },
    /// The worker has the attempt's checkpoint: every byte was verified on the way.
    Restored {
        attempt: AttemptId,
        rank: u32,
        seq: CheckpointSeq,
    },
    /// Bad or missing bytes at every holder, or no room: the attempt cannot start. `corrupt`: no holder had good bytes.
    RestoreFailed {
        attempt: AttemptId,
        rank: u32,
        seq: CheckpointSeq,
        corrupt: bool,
        reason: String,
    },
    StartFailed {
        attempt: AttemptId,
        rank: u32,
        reason: String,
    },
    Exited {
        attempt: AttemptId,
        rank: u32,
        exit: ExitRecord,
    },
    /// Stopped, and will never start.
    Released {
        attempt: AttemptId,
        rank: u32,
    },
    /// This node now has the bundle.
    BundleHeld {
        digest: Digest,
    },
    /// This node now has a sealed rank's bytes, verified and durable. `attempt` is the one that wrote them.
    ShardHeld {
        attempt: AttemptId,
        seq: CheckpointSeq,
        rank: u32,
        root: Digest,
    },
    /// This node's copy is damaged or gone: it holds the shard no more.
    ShardLost {
        attempt: AttemptId,
        seq: CheckpointSeq,
        rank: u32,
        root: Digest,
        reason: String,
    },
    /// This node could not make the copy that it was told to make.
    CopyFailed {
        attempt: AttemptId,
        seq: CheckpointSeq,
        rank: u32,
        reason: String,
    },
}

/// One rank's part of a seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedShard {
    pub rank: u32,
    pub root: Digest,
    pub size_bytes: u64,
    pub holders: Vec<Holder>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first entry of a new cluster. Records the founder as c1 at `address`.
    InitCluster {
        cluster_id: ClusterId,
        profile: Profile,
        address: String,
    },
    /// The first entry of a cluster that goes on from another's data (restored from a backup, or recovered from one
    /// survivor). Its only member gets the entry's index as its id; all that ran before is stopped.
    OpenGeneration {
        cluster_id: ClusterId,
        address: String,
        feature_level: u32,
        reason: String,
    },
    /// A new leader's (or restarted leader's) first entry. Its index becomes the incarnation.
    Barrier {
        coordinator: CoordinatorId,
    },
    /// Gives an id (the entry's index, so it is never reused) to a coordinator that wants to join. Id c1 is the founder.
    AddCoordinator {
        address: String,
        feature_level: u32,
    },
    RemoveCoordinator {
        coordinator: CoordinatorId,
    },
    /// By a coordinator for itself, when it starts with a build that knows another level than its record says.
    AnnounceCoordinator {
        coordinator: CoordinatorId,
        feature_level: u32,
    },
    RaiseFeatureLevel {
        level: u32,
    },

    RegisterNode(Box<Registration>),
    /// Leader only; refused unless `incarnation` is the newest and the registration is the node's current one.
    NodeLost {
        node: NodeId,
        registration: RegistrationId,
        incarnation: Incarnation,
    },
    CordonNode {
        node: NodeId,
    },
    UncordonNode {
        node: NodeId,
    },
    /// Cordon, and move the work away.
    DrainNode {
        node: NodeId,
    },
    LabelNode {
        node: NodeId,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    },
    /// Leader only.
    QuarantineNode {
        node: NodeId,
        reason: String,
        /// `None`: of a log from before it was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<Incarnation>,
    },
    /// Observations `first..first+len` of one registration.
    Observe {
        node: NodeId,
        registration: RegistrationId,
        first: u64,
        observations: Vec<Observation>,
    },

    SubmitJob {
        spec: Box<JobSpec>,
        bundle: Option<Bundle>,
    },
    CancelJob {
        job: JobId,
        reason: Option<String>,
    },
    /// Leader only, when the retention time is over.
    ExpireJob {
        job: JobId,
        incarnation: Incarnation,
    },

    /// Leader only. `previous` is the newest attempt number that the planner saw (0: none): a compare-and-set.
    StartAttempt {
        group: GroupId,
        previous: u64,
        rung: Rung,
        placed: Vec<Placed>,
        restore: RestoreDecision,
        incarnation: Incarnation,
    },
    /// Leader only: the attempt becomes Stopping.
    StopAttempt {
        attempt: AttemptId,
        cause: Cause,
        graceful: bool,
        incarnation: Incarnation,
    },
    /// Leader only: a Stopping attempt becomes Ended (its salvage is over).
    EndAttempt {
        attempt: AttemptId,
        incarnation: Incarnation,
    },
    /// Leader only: asks the attempt's workers for a checkpoint now (drain, preemption).
    RequestCheckpoint {
        attempt: AttemptId,
        incarnation: Incarnation,
    },
    /// Leader only: the group is given up; the job fails with the reason.
    GiveUp {
        group: GroupId,
        reason: String,
        incarnation: Incarnation,
    },

    /// By an agent for its worker. Idempotent by (attempt, step).
    OpenCheckpoint {
        attempt: AttemptId,
        step: u64,
        /// Wait for a turn, whatever the job says of busy times: this one must not be skipped.
        #[serde(default, skip_serializing_if = "is_false")]
        in_turn: bool,
    },
    /// Leader only. The commit point: fenced by attempt, complete, every holder still that holder.
    SealCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        attempt: AttemptId,
        manifest_root: Digest,
        shards: Vec<SealedShard>,
        durability: Durability,
        degraded: bool,
    },
    /// Leader only.
    AbortCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        reason: String,
        /// `None`: of a log from before it was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<Incarnation>,
    },
    /// Leader only.
    RetireCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        /// `None`: of a log from before it was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<Incarnation>,
    },
    /// Leader only.
    QuarantineCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        reason: String,
        /// `None`: of a log from before it was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<Incarnation>,
    },
    PinCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        pinned: bool,
    },
    /// Leader only: tells nodes what to do with ranks of a sealed checkpoint. One command for all ranks of a kind.
    OrderShards {
        job: JobId,
        seq: CheckpointSeq,
        task: ShardTask,
        /// Rank and node.
        orders: Vec<(u32, NodeId)>,
        incarnation: Incarnation,
    },
    /// Leader only: how often the group saves from now on.
    SetInterval {
        group: GroupId,
        interval: ChosenInterval,
        incarnation: Incarnation,
    },
    /// Leader only: a holder of every rank has read its copy back.
    ProveCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        incarnation: Incarnation,
    },
    /// Leader only: the object store has every rank, the manifest and the commit record.
    StoreCheckpoint {
        job: JobId,
        seq: CheckpointSeq,
        incarnation: Incarnation,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// Mend the request.
    #[error("{reason}")]
    Invalid { reason: String },
    /// The state moved on, or something else stands in the way: read again.
    #[error("{reason}")]
    Conflict { reason: String },
    /// Only the current attempt, registration or incarnation may do this.
    #[error("fenced: {reason}")]
    Fenced { reason: String },
    /// A bound of the state is reached.
    #[error("{reason}")]
    Exhausted { reason: String },
}

/// The deterministic answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Done,
    Barrier(Incarnation),
    CoordinatorAdded(CoordinatorId),
    Registered {
        /// Index of this entry: the node's `assignments_changed_at` is at least this.
        index: u64,
    },
    /// The number of the newest observation that is applied now.
    Observed(u64),
    JobSubmitted(JobId),
    AttemptStarted(AttemptId),
    CheckpointOpened(CheckpointSeq),
    /// Not this step, for no rank of the gang: earlier ones are still being written.
    CheckpointSkipped {
        step: u64,
    },
    Refused(Refusal),
}
