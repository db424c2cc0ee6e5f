//! The object store's part: putting a sealed shard there, publishing the checkpoint once all ranks are, and taking away
//! what the log retired.

use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::manifest::{Manifest, ManifestShard};
use outlast_blobs::objects::{CommitRecord, ObjectTier, Published, PutError};
use outlast_blobs::{ReadError, ShardMeta};
use outlast_control::state::Checkpoint;
use outlast_types::ClusterId;
use tokio::sync::OwnedSemaphorePermit;

use super::{Ended, OrderKey, damage};
use crate::context::{Context, blocking};
use crate::transfer::chain;

/// How long an upload that is done asks whether the other ranks are there; then the order is begun anew.
const PUBLISH_TRIES: u32 = 30;
const PUBLISH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A sealed checkpoint, as the seal beside a shard tells it.
pub(crate) struct Sealed {
    pub(crate) manifest: Manifest,
    pub(crate) record: CommitRecord,
}

/// The own shard goes up, then the checkpoint is published if it is whole.
pub(super) async fn store(context: &Arc<Context>, key: &OrderKey, turn: OwnedSemaphorePermit) -> Ended {
    let Some(tier) = &context.store else {
        return Ended::Later("this agent has no object store: start it with --store URL".to_owned());
    };
    let found = context.shards.list().into_iter().find(|meta| (meta.key, meta.root) == (key.shard, key.root));
    let Some(meta) = found else { return Ended::Damaged("its file is gone".to_owned()) };
    let sealed = match sealed(context, &meta).await {
        Ok(sealed) => sealed,
        // The seal comes with the session; the order may be here first.
        Err(reason) => return Ended::Later(reason),
    };
    // Known before the first byte is in the store, so that what is retired is also taken away from there.
    let (shards, marked) = (context.shards.clone(), meta.clone());
    if let Err(err) = blocking(move || shards.mark_stored(&marked.key, marked.root)).await {
        return Ended::Later(format!("it cannot be noted that the shard is stored: {err}"));
    }
    match tier.put_shard(&context.shards, &meta).await {
        Ok(report) => {
            tracing::debug!(checkpoint = %key.shard.seq, rank = key.shard.rank, parts = report.parts, sent = report.parts_sent, "shard in the object store");
        }
        Err(PutError::Read { source }) => {
            return damage(&source).map_or_else(|| Ended::Later(chain(&source)), Ended::Damaged);
        }
        Err(err) => return Ended::Later(chain(&err)),
    }
    // The other ranks need it to get there.
    drop(turn);
    publish(tier, &sealed).await
}

async fn publish(tier: &ObjectTier, sealed: &Sealed) -> Ended {
    for _ in 0..PUBLISH_TRIES {
        match tier.publish(&sealed.manifest, &sealed.record).await {
            Ok(Published::Committed) => return Ended::Done,
            Ok(Published::Incomplete { .. }) => tokio::time::sleep(PUBLISH_AGAIN_AFTER).await,
            Err(err) => return Ended::Later(chain(&err)),
        }
    }
    Ended::Later("other ranks are not in the object store yet".to_owned())
}

/// Takes the checkpoint out of the store, where this node put a part of it there. `Err`: not now, for this reason.
pub(crate) async fn remove(context: &Arc<Context>, meta: &ShardMeta) -> Result<(), String> {
    let Some(tier) = &context.store else {
        return Err("this agent has no object store: start it with --store URL".to_owned());
    };
    tier.abandon(&context.shards, &meta.key, meta.root).await;
    let sealed = sealed(context, meta).await?;
    tier.remove(&sealed.manifest, &sealed.record.cluster).await.map_err(|err| chain(&err))
}

async fn sealed(context: &Arc<Context>, meta: &ShardMeta) -> Result<Sealed, String> {
    let (store, key, root) = (context.shards.clone(), meta.key, meta.root);
    let note = blocking(move || store.seal_of(&key, root))
        .await
        .map_err(|err: ReadError| format!("the seal of {} is not beside its shard yet ({err})", key.seq))?;
    of_record(note.record).ok_or_else(|| format!("the seal beside {} is not understood", key.seq))
}

fn of_record(record: serde_json::Value) -> Option<Sealed> {
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
    // Only what never changes: every rank's agent has to write the very same.
    let record = serde_json::json!({
        "checkpoint": serde_json::to_value(&manifest).ok()?,
        "spec": record["spec"].clone(),
        "bundle": record["bundle"].clone(),
    });
    Some(Sealed { manifest, record: CommitRecord { cluster, job, job_name, manifest_root, record } })
}
