//! The root of the replicated state.

use std::collections::BTreeMap;

use outlast_types::{ClusterId, CoordinatorId, JobId, NodeId, Profile, RequestId, WallTime};
use serde::{Deserialize, Serialize};

use super::index::Index;
use super::{Job, Node, Response};

/// Where every cluster starts; independent of the build, or a newer one would replay an old log differently.
pub(super) const FIRST_FEATURE_LEVEL: u32 = 1;

/// Bounds of the state. Constants of this version, not settings: every coordinator must apply alike.
pub struct Limits;

impl Limits {
    /// Attempts of a group that stay in full.
    pub const ATTEMPTS_KEPT: usize = 50;
    /// Attempts of a group that keep the last lines of their workers; older ones keep how they ended.
    pub const LAST_LINES_KEPT: usize = 3;
    /// Registrations of a node that are remembered, so that a late repeat of one cannot replace its successor.
    pub const REGISTRATIONS_KEPT: usize = 16;
    /// Request ids that are remembered, so that a retry is answered and not repeated.
    pub const REQUESTS_KEPT: usize = 10_000;
    /// How long they are remembered at least while there is room (leader's clock).
    pub const REQUEST_WINDOW_MS: u64 = 24 * 3_600_000;
    pub const JOBS_MAX: usize = 100_000;
    pub const NODES_MAX: usize = 10_000;
    /// Open checkpoints of one attempt: one being written, one being copied. A third is skipped or waits.
    pub const OPEN_CHECKPOINTS_MAX: usize = 2;
    /// An open checkpoint older than this (leader's clock) holds no newer one up: a rank of it will never come.
    pub const OPEN_CHECKPOINT_STUCK_MS: u64 = 5 * 60_000;
    /// Retired and aborted records that a job keeps for its history; and as many quarantined ones.
    pub const OLD_CHECKPOINTS_KEPT: usize = 50;
    /// Clusters that a recovered one goes on from; an agent that was away for longer needs a new folder.
    pub const PREDECESSORS_KEPT: usize = 64;
    /// Numbers of jobs and checkpoints that a new generation leaves out: the time that was lost may have given them
    /// away, and agents still have bytes and verdicts under them. A year of a checkpoint every 30 seconds fits in.
    pub const NUMBERS_SKIPPED: u64 = 1_000_000;
}

/// Fixed when the cluster is made; a disaster recovery makes a new one of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    pub cluster_id: ClusterId,
    pub profile: Profile,
    /// The clusters that this one goes on from, oldest first: their agents are welcome, their coordinators are not.
    #[serde(default)]
    pub predecessors: Vec<ClusterId>,
}

/// One leader's time in office: the log index of its barrier entry, so that incarnations are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation {
    pub index: u64,
    pub coordinator: CoordinatorId,
}

/// A coordinator that was ever given an id. Ids are never reused, so removed ones stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// `host:port` that others reach it at.
    pub address: String,
    pub feature_level: u32,
    pub added_at: WallTime,
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// `None` until `InitCluster` has been applied.
    pub config: Option<ClusterConfig>,
    /// Grows with each disaster recovery; part of every attempt's fencing token.
    pub generation: u64,
    /// The first job number of this generation; older jobs may have run anywhere in the time that was lost.
    #[serde(default)]
    pub generation_first_job: u64,
    /// The newest level that every member knows; a command above it is refused.
    pub feature_level: u32,
    /// The index of the last entry applied.
    pub applied: u64,
    pub incarnation: Option<Incarnation>,
    pub next_job: u64,
    pub coordinators: BTreeMap<CoordinatorId, CoordinatorRecord>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub jobs: BTreeMap<JobId, Job>,
    /// Answers to remember, with the time that they were given at.
    pub requests: BTreeMap<RequestId, (WallTime, u64, Response)>,
    /// `requests` in the order of their answers: sequence number → id.
    pub request_order: BTreeMap<u64, RequestId>,
    pub next_request: u64,
    /// Derived; see `index.rs`.
    #[serde(skip)]
    pub(crate) index: Index,
}

impl ClusterState {
    /// The state before the first entry.
    pub fn new() -> Self {
        Self {
            config: None,
            generation: 1,
            generation_first_job: 1,
            feature_level: FIRST_FEATURE_LEVEL,
            applied: 0,
            incarnation: None,
            next_job: 1,
            coordinators: BTreeMap::new(),
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            requests: BTreeMap::new(),
            request_order: BTreeMap::new(),
            next_request: 0,
            index: Index::default(),
        }
    }
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new()
    }
}
