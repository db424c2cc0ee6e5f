//! A sealed checkpoint, as the seal beside one of its shards tells it: what a bucket gets, and what a cluster whose
//! coordinators are all gone is made of again.

use outlast_blobs::manifest::{Manifest, ManifestShard};
use outlast_blobs::objects::CommitRecord;
use outlast_blobs::{ReadError, ShardKey, ShardStore};
use outlast_control::state::Checkpoint;
use outlast_types::{CheckpointSeq, ClusterId, Digest};
use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) manifest: Manifest,
    pub(crate) record: CommitRecord,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SealedError {
    #[error("the seal of {seq} is not beside its shard yet ({why})")]
    Read { seq: CheckpointSeq, why: ReadError },
    #[error("the seal beside {seq} is not understood")]
    Content { seq: CheckpointSeq },
    #[error("the seal beside {seq} does not prove what it says: its shards do not make its manifest root")]
    Root { seq: CheckpointSeq },
}

impl Sealed {
    /// Reads the seal beside a shard, and checks it. Blocks on the disk.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub(crate) fn beside(store: &ShardStore, key: &ShardKey, root: Digest) -> Result<Self, SealedError> {
        let seq = key.seq;
        let note = store.seal_of(key, root).map_err(|why| SealedError::Read { seq, why })?;
        let (checkpoint, sealed) = of_record(&note.record).ok_or(SealedError::Content { seq })?;
        if checkpoint.manifest_root != Some(sealed.record.manifest_root)
            || (checkpoint.attempt, seq) != (key.attempt, checkpoint.seq)
        {
            return Err(SealedError::Root { seq });
        }
        Ok(sealed)
    }
}

fn of_record(record: &Value) -> Option<(Checkpoint, Sealed)> {
    let cluster: ClusterId = record["cluster_id"].as_str()?.parse().ok()?;
    let job_name = record["job_name"].as_str()?.to_owned();
    let checkpoint: Checkpoint = serde_json::from_value(record["checkpoint"].clone()).ok()?;
    let shards = checkpoint.shards.iter().map(|shard| ManifestShard {
        rank: shard.rank,
        root: shard.root,
        size_bytes: shard.size_bytes,
    });
    let manifest = Manifest {
        job: checkpoint.attempt.group.job,
        attempt: checkpoint.attempt,
        seq: checkpoint.seq,
        step: checkpoint.step,
        world_size: checkpoint.world_size,
        shards: shards.collect(),
    };
    let (job, manifest_root) = (manifest.job, manifest.root());
    // Only what never changes, but for the cluster's own name: every rank's agent has to write the same.
    let record = serde_json::json!({
        "checkpoint": serde_json::to_value(&manifest).ok()?,
        "spec": record["spec"],
        "bundle": record["bundle"],
        "predecessors": record["predecessors"],
        "profile": record["profile"],
        "opened_at": checkpoint.opened_at,
        "sealed_at": checkpoint.sealed_at,
    });
    let record = CommitRecord { cluster, job, job_name, manifest_root, record };
    Some((checkpoint, Sealed { manifest, record }))
}
