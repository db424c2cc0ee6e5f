//! Tellings, as they were read. Whoever read a seal has checked that its shards make its manifest root.

use std::collections::BTreeSet;

use outlast_types::{
    AttemptId, BootId, CheckpointSeq, ClusterId, Digest, DiskId, JobId, JobSpec, NodeId, Profile, WallTime,
};

use crate::state::Holder;

/// Who told of a seal, and so has bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealSource {
    /// The object store has every rank.
    Store,
    /// A node has the shards of these ranks.
    Node { holder: Holder, ranks: Vec<u32> },
}

/// One telling of one sealed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSeal {
    /// The cluster's name when the seal was written down.
    pub cluster: ClusterId,
    /// The clusters that it went on from, oldest first.
    pub predecessors: Vec<ClusterId>,
    pub profile: Option<Profile>,
    pub spec: JobSpec,
    /// What the job brings along, with its size in bytes.
    pub bundle: Option<(Digest, u64)>,
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub step: u64,
    pub manifest_root: Digest,
    /// Root and size in bytes of each rank's shard, by rank.
    pub shards: Vec<(Digest, u64)>,
    pub opened_at: Option<WallTime>,
    pub sealed_at: Option<WallTime>,
    pub source: SealSource,
}

/// An agent that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundNode {
    pub id: NodeId,
    pub boot: BootId,
    pub disk: DiskId,
    /// `host:port` of its peer service.
    pub address: String,
    /// The cluster that it belongs to; `None`: it never met one.
    pub cluster: Option<ClusterId>,
    pub predecessors: Vec<ClusterId>,
    pub bundles: BTreeSet<Digest>,
}

/// Something that was found and is of no use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// `None`: it is not even known whose it is.
    pub job: Option<JobId>,
    pub checkpoint: Option<CheckpointSeq>,
    pub reason: String,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Remains {
    pub seals: Vec<FoundSeal>,
    pub nodes: Vec<FoundNode>,
    /// Bundles that the object store has.
    pub stored_bundles: BTreeSet<Digest>,
    /// Numbers of attempts and checkpoints that bytes lie under, sealed or not: they were given away.
    pub numbers: BTreeSet<(AttemptId, CheckpointSeq)>,
    /// What the reader could not make sense of.
    pub damaged: Vec<LeftOut>,
}
