//! The files that a job brings along: from the own store, else from whoever has them, at last from the object store;
//! unpacked for each attempt.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::Keep;
use outlast_blobs::objects::GetError;
use outlast_blobs::pack::{self, PackLimits};
use outlast_types::Digest;
use tokio::time::Instant;

use super::handle::WorkerHandle;
use super::log_dir::worker_dirs;
use crate::assigned::BundleRef;
use crate::context::{Context, blocking};
use crate::peer::client;
use crate::transfer::chain;

/// As for a checkpoint's bytes.
const TRY_FOR: Duration = Duration::from_secs(30);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A bundle has some hundred MiB at most, and most have far less.
const KEPT: Keep = Keep { count: 20, bytes: 2 << 30, age: Duration::from_secs(7 * 24 * 3_600) };

#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    #[error("the job's bundle is held by no node that could be asked")]
    NoHolder,
    #[error("the job's bundle could not be fetched from {node}: {reason}")]
    Fetch { node: String, reason: String },
    #[error("the job's bundle could not be unpacked: {0}")]
    Unpack(String),
}

/// Whether it had to be fetched: then this node is a new holder.
pub(super) async fn provide(
    context: &Arc<Context>,
    handle: &WorkerHandle,
    bundle: &BundleRef,
) -> Result<bool, BundleError> {
    let store = context.bundles.clone();
    let digest = bundle.digest;
    let has = blocking(move || store.has(&digest)).await;
    if has {
        match unpack(context, handle, digest).await {
            // The own copy is of no use: another one takes its place.
            Err(Unpacked::Corrupt(_) | Unpacked::Gone) => {
                tracing::warn!(%digest, "the own copy of a bundle is damaged and is fetched anew");
            }
            unpacked => return unpacked.map(|()| false).map_err(Into::into),
        }
    }
    fetch(context, handle, bundle).await?;
    unpack(context, handle, digest).await?;
    prune(context).await;
    Ok(true)
}

enum Unpacked {
    Corrupt(String),
    Gone,
    Failed(String),
}

impl From<Unpacked> for BundleError {
    fn from(unpacked: Unpacked) -> Self {
        match unpacked {
            Unpacked::Corrupt(reason) | Unpacked::Failed(reason) => BundleError::Unpack(reason),
            Unpacked::Gone => BundleError::Unpack("it is not there any more".to_owned()),
        }
    }
}

async fn unpack(context: &Arc<Context>, handle: &WorkerHandle, digest: Digest) -> Result<(), Unpacked> {
    let (store, target) = (context.bundles.clone(), handle.dir.work());
    blocking(move || {
        // Verified whole before the first byte is unpacked.
        let file = store.open_bundle(&digest).map_err(|err| match err {
            outlast_blobs::BundleError::Corrupt(_) => Unpacked::Corrupt(chain(&err)),
            outlast_blobs::BundleError::Missing(_) => Unpacked::Gone,
            _ => Unpacked::Failed(chain(&err)),
        })?;
        let unpacked = pack::unpack(file, &target, PackLimits::BUNDLE);
        unpacked.map(drop).map_err(|err| Unpacked::Failed(chain(&err)))
    })
    .await
}

/// A gang starts at many nodes at once and all ask the same few holders, which serve so many at a time: who was turned
/// away asks again, for a bounded time.
async fn fetch(context: &Arc<Context>, handle: &WorkerHandle, bundle: &BundleRef) -> Result<(), BundleError> {
    let until = Instant::now() + TRY_FOR;
    let mut bundle = bundle.clone();
    loop {
        let (mut last, mut may_change) = (BundleError::NoHolder, bundle.holders.is_empty());
        for peer in bundle.holders.iter().filter(|peer| peer.node != context.node.as_str()) {
            match client::get_bundle(context, peer, &bundle).await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    may_change |= failure.is_retryable();
                    last = BundleError::Fetch { node: peer.node.clone(), reason: failure.to_string() }
                }
            }
        }
        match fetch_stored(context, &bundle).await {
            Ok(()) => return Ok(()),
            Err(None) => {}
            Err(Some((reason, may_pass))) => {
                may_change |= may_pass;
                last = BundleError::Fetch { node: "the object store".to_owned(), reason };
            }
        }
        if !may_change || Instant::now() >= until {
            return Err(last);
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
        // Others have become holders meanwhile.
        let newest = handle.assigned.borrow().bundle.clone();
        bundle = newest.filter(|newest| newest.digest == bundle.digest).unwrap_or(bundle);
    }
}

/// It is there once a checkpoint of the job is, and outlives every node. `None`: it is not there, or there is no store;
/// else why it did not come, and whether that may pass.
async fn fetch_stored(context: &Arc<Context>, bundle: &BundleRef) -> Result<(), Option<(String, bool)>> {
    let tier = context.store.as_ref().ok_or(None)?;
    let got = tier.get_bundle(&context.bundles, bundle.digest, bundle.size_bytes).await;
    got.map_err(|err| match err {
        GetError::Missing => None,
        GetError::Transient { .. } => Some((chain(&err), true)),
        _ => Some((chain(&err), false)),
    })
}

/// Makes room where bundles have piled up. The log counts on this node as a holder, and a job may wait in the queue for
/// long: so only what nothing here has used for a week, and no worker that the log still holds here needs.
pub(crate) async fn prune(context: &Arc<Context>) {
    let (store, workers) = (context.bundles.clone(), context.folder.workers());
    let pruned = blocking(move || {
        let held = worker_dirs(&workers).into_iter().filter(|dir| !dir.is_over());
        let wanted: BTreeSet<Digest> =
            held.filter_map(|dir| Some(dir.read_record().ok()??.assigned.bundle?.digest)).collect();
        store.prune(KEPT, |digest| wanted.contains(digest))
    });
    match pruned.await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "old bundles removed"),
        Err(err) => tracing::warn!(error = %err, "old bundles cannot be removed"),
    }
}
