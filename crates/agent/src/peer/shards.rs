//! Shards for peers. "It is bad" (`DATA_LOSS`), "it is not there" (`NOT_FOUND`) and "not now" (`UNAVAILABLE`) are
//! different answers, because the caller does different things.

use std::io::{self, Read};
use std::sync::Arc;

use futures::StreamExt;
use outlast_blobs::{ReadError, ShardKey, ShardMeta, ShardReader};
use outlast_proto::FieldError;
use outlast_proto::convert::parse;
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{AttemptId, Digest};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connections::{Lane, Meetings, in_turn};
use super::service::Chunks;
use crate::checkpoints::Fate;
use crate::context::{Context, blocking};
use crate::event::Event;
use crate::transfer::{chain, deal_chunks, read_chunks, receive_shard};
use crate::upkeep::{UpkeepEvent, damage};

/// 1 TiB: no rank's part is larger, and a lie about the size must not reserve the whole disk.
const SHARD_BYTES_MAX: u64 = 1 << 40;

#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) key: ShardKey,
    pub(super) root: Digest,
    pub(super) size_bytes: u64,
}

impl TryFrom<Option<pb::ShardKey>> for Wanted {
    type Error = FieldError;

    fn try_from(key: Option<pb::ShardKey>) -> Result<Self, FieldError> {
        let pb::ShardKey { attempt, checkpoint, rank, root, size_bytes } =
            key.ok_or(FieldError::missing("key"))?;
        let attempt: AttemptId = parse("key.attempt", &attempt)?;
        let seq = parse("key.checkpoint", &checkpoint)?;
        let root = Digest::try_from(root.as_ref()).map_err(|err| FieldError::new("key.root", err))?;
        Ok(Self { key: ShardKey { job: attempt.group.job, attempt, seq, rank }, root, size_bytes })
    }
}

/// Receives a copy: every byte is hashed and synced before the answer. Copies of attempts that are over are refused:
/// nobody could seal them (fencing, layer b).
pub(super) async fn put(
    context: &Arc<Context>,
    lent: &Arc<Meetings<Lent>>,
    (lane, head): (Lane, pb::PutShardRequest),
    stream: Streaming<pb::PutShardRequest>,
) -> Result<pb::PutShardResponse, Status> {
    let Wanted { key, root, size_bytes } = head.key.try_into()?;
    if size_bytes > SHARD_BYTES_MAX {
        let reason = format!("a shard of {size_bytes} bytes is above the limit of {SHARD_BYTES_MAX}");
        return Err(Failure::Rejected { reason, hint: String::new() }.into());
    }
    if context.is_superseded(&key.attempt) {
        return Err(Failure::Fenced { reason: format!("fenced: attempt {} is over", key.attempt) }.into());
    }
    if let Some(Fate::Over(reason)) = context.checkpoints.fate(key.job, key.seq) {
        return Err(Failure::Fenced {
            reason: format!("checkpoint {} of {} is over: {reason}", key.seq, key.job),
        }
        .into());
    }
    let (mut streams, mut in_use) = (vec![stream], Vec::new());
    for other in lane.others() {
        let Lent { stream, until } = lent.take(other).await?;
        streams.push(stream);
        in_use.push(until);
    }
    let late = Arc::clone(context);
    let incoming = receive_shard(&context.shards, key, root, size_bytes, move |meta| drop_late(&late, meta));
    let mut takes_more = incoming.push(head.data).await;
    let mut messages = in_turn(streams);
    while takes_more {
        let Some(message) = messages.next().await else { break };
        takes_more = incoming.push(message?.data).await;
    }
    let meta = incoming.finish().await.map_err(Failure::from)?;
    context.metrics.peer_bytes_received.inc_by(meta.size_bytes);
    let holder = context.holder();
    Ok(pb::PutShardResponse {
        node: holder.node.to_string(),
        boot_id: holder.boot.to_string(),
        disk_id: holder.disk.to_string(),
    })
}

/// The stream of a connection that is not the first of its transfer.
pub(super) struct Lent {
    stream: Streaming<pb::PutShardRequest>,
    /// Dropped when it is not needed any more.
    until: oneshot::Sender<()>,
}

/// Lends the stream to its transfer, until that is over.
pub(super) async fn lend(
    lent: &Arc<Meetings<Lent>>,
    lane: Lane,
    stream: Streaming<pb::PutShardRequest>,
) -> Result<pb::PutShardResponse, Status> {
    let (until, is_over) = oneshot::channel();
    lent.leave(lane, Lent { stream, until })?.until(is_over).await?;
    Ok(pb::PutShardResponse::default())
}

/// Bytes that arrived after the log had told this node that their checkpoint is over: nobody will say it again, so they go
/// at once. `Some`: why. Blocks on the disk.
pub(crate) fn drop_late(context: &Context, meta: &ShardMeta) -> Option<String> {
    let (key, root) = (meta.key, meta.root);
    let fate = context.checkpoints.fate(key.job, key.seq).filter(Fate::bytes_may_go)?;
    let Fate::Over(reason) = fate else { return None };
    if let Err(err) = context.shards.remove(&key, root) {
        tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, error = %err, "a shard that came too late cannot be removed");
    }
    Some(format!("checkpoint {} of {} is over: {reason}", key.seq, key.job))
}

/// For a caller that verifies the whole: over several connections, with little memory.
pub(super) async fn get(
    context: &Arc<Context>,
    dealt: &Arc<Meetings<Chunks>>,
    (lane, key): (Lane, Option<pb::ShardKey>),
    permit: OwnedSemaphorePermit,
) -> Result<Chunks, Status> {
    let wanted = key.try_into()?;
    let chunks = deal_chunks(open(context, &wanted).await?, lane.count);
    let mut chunks = chunks.into_iter().map(|chunks| watched(context, &wanted, chunks));
    let own = chunks.next().expect("there is one connection at least");
    let others = lane.others().zip(chunks);
    let held = others.map(|(lane, chunks)| dealt.leave(lane, served(chunks, ())));
    let held = held.collect::<Result<Vec<_>, _>>()?;
    Ok(served(own, (permit, held)))
}

/// For a caller that passes the bytes on before it has the whole.
pub(super) async fn get_verified(
    context: &Arc<Context>,
    key: Option<pb::ShardKey>,
    held: impl Send + 'static,
) -> Result<Chunks, Status> {
    let wanted = key.try_into()?;
    let chunks = read_chunks(open(context, &wanted).await?.with_little_memory());
    Ok(served(watched(context, &wanted, chunks), held))
}

async fn open(context: &Arc<Context>, wanted: &Wanted) -> Result<ShardReader, Status> {
    let (store, Wanted { key, root, .. }) = (context.shards.clone(), *wanted);
    match blocking(move || store.open_shard(&key, root)).await {
        Ok(reader) => Ok(reader),
        Err(err) => {
            tell_damage(context, key, root, &err).await;
            Err(status(&err))
        }
    }
}

/// Damage that is found while the bytes go out is told to the log, too.
fn watched(
    context: &Arc<Context>,
    &Wanted { key, root, .. }: &Wanted,
    chunks: mpsc::Receiver<io::Result<bytes::Bytes>>,
) -> impl futures::Stream<Item = io::Result<bytes::Bytes>> + Send + use<> {
    let context = Arc::clone(context);
    ReceiverStream::new(chunks).then(move |chunk: io::Result<bytes::Bytes>| {
        let context = Arc::clone(&context);
        async move {
            if let Some(read) = chunk.as_ref().err().and_then(read_error) {
                tell_damage(&context, key, root, read).await;
            }
            chunk
        }
    })
}

pub(super) async fn verify(
    context: &Arc<Context>,
    key: Option<pb::ShardKey>,
    look_only: bool,
) -> Result<pb::VerifyShardResponse, Status> {
    let Wanted { key, root, .. } = key.try_into()?;
    let store = context.shards.clone();
    let verified = blocking(move || match look_only {
        true => store.look(&key, root),
        false => store.read_back(&key, root, |_| true),
    })
    .await;
    if let Err(err) = &verified {
        tell_damage(context, key, root, err).await;
    }
    let (outcome, detail) = match verified {
        Ok(()) => ("ok", String::new()),
        Err(err @ ReadError::Corrupt { .. }) => ("corrupt", err.to_string()),
        Err(err @ ReadError::Missing) => ("missing", err.to_string()),
        Err(err @ ReadError::Transient { .. }) => ("unreachable", chain(&err)),
    };
    Ok(pb::VerifyShardResponse { outcome: outcome.to_owned(), detail })
}

/// A copy that should be here and is no good: whoever noticed, the log has to know.
async fn tell_damage(context: &Arc<Context>, key: ShardKey, root: Digest, error: &ReadError) {
    let is_ours = context.shards.list().iter().any(|meta| (meta.key, meta.root) == (key, root));
    if let Some(reason) = damage(error).filter(|_| is_ours) {
        let damaged = UpkeepEvent::Damaged { shard: key, root, reason };
        let _ = context.events.send(Event::Upkeep(damaged)).await;
    }
}

/// What is held lives as long as the stream.
pub(super) fn chunks<R: Read + Send + 'static>(reader: R, permit: OwnedSemaphorePermit) -> Chunks {
    served(ReceiverStream::new(read_chunks(reader)), permit)
}

pub(super) fn served(
    chunks: impl futures::Stream<Item = io::Result<bytes::Bytes>> + Send + 'static,
    held: impl Send + 'static,
) -> Chunks {
    Box::pin(chunks.map(move |chunk| {
        let _held = &held;
        chunk.map(|data| pb::Chunk { data }).map_err(|err| io_status(&err))
    }))
}

fn read_error(error: &io::Error) -> Option<&ReadError> {
    error.get_ref()?.downcast_ref()
}

fn io_status(error: &io::Error) -> Status {
    match read_error(error) {
        Some(read) => status(read),
        None => Status::unavailable(error.to_string()),
    }
}

fn status(error: &ReadError) -> Status {
    match error {
        ReadError::Corrupt { .. } => Status::data_loss(error.to_string()),
        ReadError::Missing => Status::not_found(error.to_string()),
        ReadError::Transient { .. } => Status::unavailable(chain(error)),
    }
}
