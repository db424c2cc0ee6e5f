//! The files that a job brings along: from the own store, else from whoever has them, unpacked for each attempt.

use std::sync::Arc;

use outlast_blobs::pack::{self, PackLimits};

use super::folder::WorkerDir;
use crate::assigned::BundleRef;
use crate::context::{Context, blocking};
use crate::peer::client;
use crate::transfer::chain;

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
    bundle: &BundleRef,
    dir: &WorkerDir,
) -> Result<bool, BundleError> {
    let store = context.bundles.clone();
    let digest = bundle.digest;
    let has = blocking(move || store.has(&digest)).await;
    if !has {
        fetch(context, bundle).await?;
    }
    let (store, target) = (context.bundles.clone(), dir.work());
    let unpacked = blocking(move || {
        let file = store.open_bundle(&digest).map_err(|err| chain(&err))?;
        pack::unpack(file, &target, PackLimits::BUNDLE).map(drop).map_err(|err| chain(&err))
    });
    unpacked.await.map_err(BundleError::Unpack)?;
    Ok(!has)
}

async fn fetch(context: &Arc<Context>, bundle: &BundleRef) -> Result<(), BundleError> {
    let mut last = BundleError::NoHolder;
    for peer in bundle.holders.iter().filter(|peer| peer.node != context.node.as_str()) {
        match client::get_bundle(context, peer, bundle).await {
            Ok(()) => return Ok(()),
            Err(failure) => {
                last = BundleError::Fetch { node: peer.node.clone(), reason: failure.to_string() }
            }
        }
    }
    Err(last)
}
