//! The object store's part: putting a sealed shard there, publishing the checkpoint once all ranks are, and taking away
//! what the log retired.

use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::objects::{ObjectTier, Published, PutBundleError, PutError};
use outlast_blobs::{ReadError, ShardKey};
use outlast_types::Digest;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::seal::look_at_seal;
use super::{Ended, damage};
use crate::assigned::{BundleRef, ShardOrder};
use crate::checkpoints::Fate;
use crate::context::{Context, blocking};
use crate::peer::client::{self, NO_STORE};
use crate::sealed::Sealed;
use crate::transfer::chain;

/// How long an upload that is done asks whether the other ranks are there; then the order is begun anew.
const PUBLISH_TRIES: u32 = 30;
const PUBLISH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The own shard goes up, and the job's bundle, then the checkpoint is published if it is whole.
pub(super) async fn store(
    context: &Arc<Context>,
    order: &ShardOrder,
    turn: OwnedSemaphorePermit,
    stop: &CancellationToken,
) -> Ended {
    let shard = (order.key.shard, order.key.root);
    if !context.storing.lock().insert(shard) {
        return Ended::Later("an earlier upload of it is being ended".to_owned());
    }
    // Looked at once the upload is noted: whoever removes what is over notes that first, and looks for uploads then.
    let ended = match context.checkpoints.fate(order.key.shard.job, order.key.shard.seq) {
        Some(Fate::Over(why)) => Ended::Later(why),
        _ => upload(context, order, turn, stop).await,
    };
    context.storing.lock().remove(&shard);
    ended
}

async fn upload(
    context: &Arc<Context>,
    order: &ShardOrder,
    turn: OwnedSemaphorePermit,
    stop: &CancellationToken,
) -> Ended {
    let (Some(tier), key) = (&context.store, &order.key) else {
        return Ended::Later(NO_STORE.to_owned());
    };
    let found = context.shards.list().into_iter().find(|meta| (meta.key, meta.root) == (key.shard, key.root));
    let Some(meta) = found else { return Ended::Damaged("its file is gone".to_owned()) };
    let sealed = match sealed(context, &meta.key, meta.root).await {
        Ok(sealed) => sealed,
        // The seal comes with the session; the order may be here first.
        Err(reason) => return Ended::Later(reason),
    };
    // Known before the first byte is in the store, so that what is retired is also taken away from there.
    let (shards, marked) = (context.shards.clone(), meta.clone());
    if let Err(err) = blocking(move || shards.mark_stored(&marked.key, marked.root)).await {
        return Ended::Later(format!("it cannot be noted that the shard is stored: {err}"));
    }
    match tier.put_shard_while(&context.shards, &meta, &|| !stop.is_cancelled()).await {
        Ok(report) => {
            tracing::debug!(checkpoint = %key.shard.seq, rank = key.shard.rank, parts = report.parts, sent = report.parts_sent, "shard in the object store");
        }
        Err(PutError::Read { source }) => {
            return damage(&source).map_or_else(|| Ended::Later(chain(&source)), Ended::Damaged);
        }
        Err(err) => return Ended::Later(chain(&err)),
    }
    if let Some(bundle) = &order.bundle
        && let Err(reason) = put_bundle(context, tier, bundle).await
    {
        return Ended::Later(format!("the job's bundle is not in the object store yet: {reason}"));
    }
    // The other ranks need it to get there.
    drop(turn);
    publish(tier, &sealed, stop).await
}

async fn publish(tier: &ObjectTier, sealed: &Sealed, stop: &CancellationToken) -> Ended {
    for _ in 0..PUBLISH_TRIES {
        if stop.is_cancelled() {
            break;
        }
        match tier.publish(&sealed.manifest, &sealed.record).await {
            Ok(Published::Committed) => return Ended::Done,
            Ok(Published::Incomplete { .. }) => tokio::time::sleep(PUBLISH_AGAIN_AFTER).await,
            Err(err) => return Ended::Later(chain(&err)),
        }
    }
    Ended::Later("other ranks are not in the object store yet".to_owned())
}

/// Takes the checkpoint out of the store, where this node put a part of it there. `Err`: not now, for this reason.
pub(crate) async fn remove(context: &Arc<Context>, key: &ShardKey, root: Digest) -> Result<(), String> {
    let Some(tier) = &context.store else {
        return Err(NO_STORE.to_owned());
    };
    tier.abandon(&context.shards, key, root).await;
    let (store, shard) = (context.shards.clone(), *key);
    if matches!(blocking(move || store.seal_of(&shard, root)).await, Err(ReadError::Missing)) {
        // Whoever puts a shard into the store has its seal: it was another node.
        tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "a stored shard has no seal here; what is in the object store is left to the node that put it there");
        return Ok(());
    }
    let sealed = sealed(context, key, root).await?;
    tier.remove(&sealed.manifest, &sealed.record).await.map_err(|err| chain(&err))
}

async fn sealed(context: &Arc<Context>, key: &ShardKey, root: Digest) -> Result<Sealed, String> {
    look_at_seal(context, key, root).await;
    let (store, key) = (context.shards.clone(), *key);
    blocking(move || Sealed::beside(&store, &key, root)).await.map_err(|err| err.to_string())
}

/// A checkpoint without what its job brings along could not be gone on from. A copy may be at a node that never ran the
/// job: then the bundle is fetched first.
async fn put_bundle(context: &Arc<Context>, tier: &ObjectTier, bundle: &BundleRef) -> Result<(), String> {
    let BundleRef { digest, size_bytes, .. } = *bundle;
    if tier.has_bundle(digest, size_bytes).await.map_err(|err| chain(&err))? {
        return Ok(());
    }
    let mut last = match tier.put_bundle(&context.bundles, digest).await {
        Ok(()) => return Ok(()),
        Err(PutBundleError::Read { source }) => chain(&source),
        Err(err) => return Err(chain(&err)),
    };
    for peer in bundle.holders.iter().filter(|peer| peer.node != context.node.as_str()) {
        match client::get_bundle(context, peer, bundle).await {
            Ok(()) => return tier.put_bundle(&context.bundles, digest).await.map_err(|err| chain(&err)),
            Err(failure) => last = format!("{}: {failure}", peer.node),
        }
    }
    Err(last)
}
