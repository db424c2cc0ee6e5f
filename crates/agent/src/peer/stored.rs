//! Shards in the object store for a coordinator, which has no access of its own: read through this node.

use std::io;
use std::sync::Arc;

use futures::{StreamExt, stream};
use outlast_blobs::ReadError;
use outlast_blobs::objects::{GetError, ObjectTier};
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::NO_STORE;
use super::service::Chunks;
use super::shards::{Wanted, served};
use crate::context::Context;
use crate::transfer::{chain, chunks_of};

fn tier(context: &Context) -> Result<&ObjectTier, Failure> {
    context.store.as_ref().ok_or_else(|| Failure::Unavailable {
        reason: NO_STORE.to_owned(),
        hint: String::new(),
        retry_after_ms: 500,
    })
}

/// The caller verifies the whole.
pub(super) fn get(
    context: &Arc<Context>,
    key: Option<pb::ShardKey>,
    held: impl Send + 'static,
) -> Result<Chunks, Status> {
    let Wanted { key, root, size_bytes } = key.try_into()?;
    tier(context)?;
    let (sender, ranges) = mpsc::channel(1);
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let Ok(tier) = tier(&context) else { return };
        if let Err(err) = tier.read_shard(&key, root, size_bytes, &sender).await {
            let _ = sender.send(Err(err)).await;
        }
    });
    let chunks = |range: Result<_, _>| stream::iter(chunks_of(range.map_err(read_error)));
    Ok(served(ReceiverStream::new(ranges).flat_map(chunks), held))
}

pub(super) async fn verify(
    context: &Arc<Context>,
    key: Option<pb::ShardKey>,
    look_only: bool,
) -> Result<pb::VerifyShardResponse, Status> {
    let Wanted { key, root, size_bytes } = key.try_into()?;
    let tier = tier(context)?;
    let verified = match look_only {
        true => tier.look(&key, root, size_bytes).await,
        false => tier.verify_shard(&key, root, size_bytes).await,
    };
    let (outcome, detail) = match verified {
        Ok(()) => ("ok", String::new()),
        Err(err @ GetError::Corrupt { .. }) => ("corrupt", err.to_string()),
        Err(err @ GetError::Missing) => ("missing", err.to_string()),
        Err(err) => ("unreachable", chain(&err)),
    };
    Ok(pb::VerifyShardResponse { outcome: outcome.to_owned(), detail })
}

fn read_error(error: GetError) -> ReadError {
    match error {
        GetError::Corrupt { extent } => ReadError::Corrupt { extent: extent.unwrap_or(0) },
        GetError::Missing => ReadError::Missing,
        other => ReadError::Transient { source: io::Error::other(other) },
    }
}
