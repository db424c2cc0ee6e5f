//! Seals beside shards that are not as they should be: the log has their text, so it is asked for it and the note is made
//! anew.

use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{ReadError, ShardKey};
use outlast_proto::node::v1 as pb;
use outlast_types::Digest;

use crate::agent_loop::{note_seal, seals_other_bytes};
use crate::context::{Context, blocking};

/// An election fits in; else the next look, or the next session, does it.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Looks at the note of a shard, and puts the log's text in its place where it cannot be read, was not written, or is of
/// a cluster that this one goes on from.
pub(super) async fn look_at_seal(context: &Arc<Context>, key: &ShardKey, root: Digest) {
    let (store, shard) = (context.shards.clone(), *key);
    let what = match blocking(move || store.seal_of(&shard, root)).await {
        Ok(note) if note.record["cluster_id"] == context.cluster_text() => return,
        Ok(_) => "a predecessor's",
        Err(ReadError::Missing) => "missing",
        Err(ReadError::Corrupt { .. }) => "damaged",
        Err(ReadError::Transient { .. }) => "unreadable",
    };
    let (job, checkpoint, rank) = (key.job, key.seq, key.rank);
    match renew_seal(context, key, root).await {
        Ok(true) => {
            tracing::info!(%job, %checkpoint, rank, was = what, "the seal beside a shard is made anew");
        }
        // The log may not have decided, or never will: there is nothing to write then.
        Ok(false) if ["missing", "a predecessor's"].contains(&what) => {}
        Ok(false) => {
            tracing::error!(%job, %checkpoint, rank, what, "the seal beside a shard is bad, and the log has no other");
        }
        Err(reason) => {
            tracing::warn!(%job, %checkpoint, rank, what, reason, "the seal beside a shard is not made anew yet");
        }
    }
}

/// `false`: the log says nothing that could be written.
async fn renew_seal(context: &Arc<Context>, key: &ShardKey, root: Digest) -> Result<bool, String> {
    let checkpoint = pb::CheckpointRef { job: key.job.to_string(), checkpoint: key.seq.to_string() };
    let request =
        pb::GetCheckpointFateRequest { cluster_id: context.cluster_text(), checkpoint: Some(checkpoint) };
    let fate = context.coordinators.checkpoint_fate(request, ASK_WITHIN).await;
    let seal = fate.map_err(|failure| failure.to_string())?.seal;
    if seal.is_empty() || seals_other_bytes(&seal, key, root) {
        return Ok(false);
    }
    let (store, key) = (context.shards.clone(), *key);
    blocking(move || note_seal(&store, &key, root, &seal)).await.map(|()| true)
}
