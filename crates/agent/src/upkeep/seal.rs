//! Seals beside shards that went bad: the log has their text, so it is asked for it and the note is made anew.

use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{ReadError, ShardKey};
use outlast_proto::node::v1 as pb;
use outlast_types::Digest;

use crate::agent_loop::note_seal;
use crate::context::{Context, blocking};

/// An election fits in; else the next look, or the next session, does it.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Looks at the note of a shard, and mends it where it is damaged.
pub(super) async fn look_at_seal(context: &Arc<Context>, key: &ShardKey, root: Digest) {
    let (store, shard) = (context.shards.clone(), *key);
    let read = blocking(move || store.seal_of(&shard, root)).await;
    if matches!(read, Err(ReadError::Corrupt { .. })) {
        mend_seal(context, key, root).await;
    }
}

/// Puts the log's text in the place of a damaged note.
async fn mend_seal(context: &Arc<Context>, key: &ShardKey, root: Digest) {
    let checkpoint = pb::CheckpointRef { job: key.job.to_string(), checkpoint: key.seq.to_string() };
    let request =
        pb::GetCheckpointFateRequest { cluster_id: context.cluster_text(), checkpoint: Some(checkpoint) };
    let mended = match context.coordinators.checkpoint_fate(request, ASK_WITHIN).await {
        Ok(update) if update.seal.is_empty() => Err(format!("the log says that it is {}", update.state)),
        Ok(update) => {
            let (store, key) = (context.shards.clone(), *key);
            blocking(move || note_seal(&store, &key, root, &update.seal)).await
        }
        Err(failure) => Err(failure.to_string()),
    };
    match mended {
        Ok(()) => {
            tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "the seal beside a shard was damaged, and is made anew")
        }
        Err(reason) => {
            tracing::error!(job = %key.job, checkpoint = %key.seq, rank = key.rank, reason, "the seal beside a shard is damaged")
        }
    }
}
