//! What this agent asks of others. Every call has a deadline that grows with the bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use outlast_blobs::objects::GetError;
use outlast_blobs::{ShardKey, ShardMeta};
use outlast_client::channel::connect_lazy;
use outlast_control::state::{Holder, Tier};
use outlast_proto::convert::parse;
use outlast_proto::peer::v1 as pb;
use outlast_proto::peer::v1::peer_service_client::PeerServiceClient;
use outlast_proto::status::Failure;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::assigned::{BundleRef, Peer, RestoreFrom};
use crate::context::Context;
use crate::coordinators::{answer, random, timed};
use crate::peer::connections::{Lane, connections_for, in_turn};
use crate::peer::drop_late;
use crate::transfer::{
    Incoming, MESSAGE_BYTES_MAX, ReceiveError, chain, deal_chunks, receive_bundle, receive_shard,
};

/// The slowest network that a copy is waited for on; slower is as good as gone.
const BYTES_PER_S_MIN: u64 = 4 << 20;
const DEADLINE_MIN: Duration = Duration::from_secs(10);

/// What an agent says that was started without one.
pub(crate) const NO_STORE: &str = "this agent has no object store: start it with --store URL";

/// What one place said of a shard.
#[derive(Debug)]
pub(crate) enum Unusable {
    Corrupt(String),
    Missing(String),
    /// Not now.
    Transient(String),
    /// This node's own trouble (its disk): no holder is to blame.
    Local(String),
}

impl Unusable {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Unusable::Corrupt(reason)
            | Unusable::Missing(reason)
            | Unusable::Transient(reason)
            | Unusable::Local(reason) => reason,
        }
    }
}

pub(crate) fn deadline(size_bytes: u64) -> Duration {
    DEADLINE_MIN + Duration::from_secs(size_bytes / BYTES_PER_S_MIN)
}

pub(super) fn connect(peer: &Peer) -> Result<PeerServiceClient<Channel>, Failure> {
    let rejected = |err: outlast_client::AddressError| Failure::Rejected {
        reason: format!("the address of node {} is of no use: {err}", peer.node),
        hint: String::new(),
    };
    let client = PeerServiceClient::new(connect_lazy(&peer.address).map_err(rejected)?);
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn shard_key(meta: (ShardKey, outlast_types::Digest, u64)) -> pb::ShardKey {
    let (key, root, size_bytes) = meta;
    pb::ShardKey {
        attempt: key.attempt.to_string(),
        checkpoint: key.seq.to_string(),
        rank: key.rank,
        root: Bytes::copy_from_slice(&root.0),
        size_bytes,
    }
}

/// Copies a shard of ours to a peer, which verifies and syncs it before it answers.
pub(crate) async fn put_shard(
    context: &Arc<Context>,
    peer: &Peer,
    meta: &ShardMeta,
) -> Result<Holder, Failure> {
    let (store, key, root) = (context.shards.clone(), meta.key, meta.root);
    let opened = crate::context::blocking(move || store.open_shard(&key, root)).await;
    let reader =
        opened.map_err(|err| Failure::Fatal { reason: format!("the own copy cannot be read: {err}") })?;
    let within = deadline(meta.size_bytes);
    let count = connections_for(meta.size_bytes, context.data_connections);
    let mut chunks = deal_chunks(reader, count).into_iter();
    let mut calls = Vec::new();
    for lane in Lane::of_transfer(random(), count) {
        let first = pb::PutShardRequest {
            key: Some(shard_key((meta.key, meta.root, meta.size_bytes))),
            data: Bytes::new(),
            cluster_id: context.cluster_text(),
            lane: (count > 1).then(|| lane.into()),
        };
        let chunks = ReceiverStream::new(chunks.next().expect("one for each"));
        // A read error cuts the stream short, and the receiver refuses what it has.
        let data = chunks.filter_map(|chunk| futures::future::ready(chunk.ok()));
        let messages = data.map(|data| pb::PutShardRequest { data, ..Default::default() });
        let requests = futures::stream::once(futures::future::ready(first)).chain(messages);
        let mut client = connect(peer)?;
        calls.push(async move { client.put_shard(timed(requests, within)).await });
    }
    // The first one's answer counts; the others only run beside it.
    let transfer = calls.remove(0);
    let others = async {
        futures::future::join_all(calls).await;
        std::future::pending().await
    };
    let put = tokio::select! {
        put = timeout(within, transfer) => answer(put),
        never = others => never,
    }?;
    let pb::PutShardResponse { node, boot_id, disk_id } = put;
    let field = |err: outlast_proto::FieldError| Failure::Fatal {
        reason: format!("the peer's answer is damaged: {err}"),
    };
    Ok(Holder {
        node: parse("node", &node).map_err(field)?,
        boot: parse("boot_id", &boot_id).map_err(field)?,
        disk: parse("disk_id", &disk_id).map_err(field)?,
        tier: Tier::Disk,
    })
}

/// Fetches a shard into the own store; verified when it returns.
pub(crate) async fn get_shard(
    context: &Arc<Context>,
    peer: &Peer,
    key: ShardKey,
    from: &RestoreFrom,
) -> Result<(), Unusable> {
    let within = deadline(from.size_bytes);
    let count = connections_for(from.size_bytes, context.data_connections);
    let mut calls = Vec::new();
    for lane in Lane::of_transfer(random(), count) {
        let request = pb::GetShardRequest {
            cluster_id: context.cluster_text(),
            key: Some(shard_key((key, from.root, from.size_bytes))),
            lane: Some(lane.into()),
            ..Default::default()
        };
        let mut client = connect(peer).map_err(|err| Unusable::Transient(err.to_string()))?;
        calls.push(async move { client.get_shard(timed(request, within)).await.map(Response::into_inner) });
    }
    let first = calls.remove(0);
    let late = Arc::clone(context);
    let incoming =
        receive_shard(&context.shards, key, from.root, from.size_bytes, move |meta| drop_late(&late, meta));
    let fetch = async {
        // It says whether there is anything to come.
        let mut streams = vec![first.await?];
        streams.extend(futures::future::try_join_all(calls).await?);
        pour(in_turn(streams), &incoming).await
    };
    match timeout(within, fetch).await {
        Err(_) => return Err(Unusable::Transient("no answer in time".to_owned())),
        Ok(Err(status)) => return Err(unusable(&status)),
        // A holder whose file is too short says so itself.
        Ok(Ok(Some(came))) if came < from.size_bytes => {
            return Err(Unusable::Transient(format!("{came} of {} bytes came", from.size_bytes)));
        }
        Ok(Ok(_)) => {}
    }
    match incoming.finish().await {
        Ok(_) => Ok(()),
        // Over several connections the parts may be of different tries, or all of it came over each: the holder would have
        // said itself that its bytes are damaged.
        Err(ReceiveError::Mismatch(reason)) if count > 1 => Err(Unusable::Transient(reason)),
        Err(ReceiveError::Mismatch(reason)) => Err(Unusable::Corrupt(reason)),
        Err(ReceiveError::Write(reason) | ReceiveError::Late(reason)) => Err(Unusable::Local(reason)),
    }
}

/// Fetches a shard from the object store into the own store; verified when it returns.
pub(crate) async fn get_stored(
    context: &Arc<Context>,
    key: ShardKey,
    root: outlast_types::Digest,
    size_bytes: u64,
) -> Result<(), Unusable> {
    let Some(tier) = &context.store else {
        return Err(Unusable::Transient(NO_STORE.to_owned()));
    };
    let late = Arc::clone(context);
    let got =
        tier.get_shard(&context.shards, &key, root, size_bytes, move |meta| drop_late(&late, meta)).await;
    got.map(drop).map_err(|err| {
        let reason = chain(&err);
        match err {
            GetError::Corrupt { .. } => Unusable::Corrupt(reason),
            GetError::Missing => Unusable::Missing(reason),
            GetError::Transient { .. } | GetError::Refused { .. } => Unusable::Transient(reason),
            GetError::Write { .. } | GetError::Keep { .. } | GetError::Late { .. } => Unusable::Local(reason),
        }
    })
}

fn unusable(status: &Status) -> Unusable {
    let reason = status.message().to_owned();
    match status.code() {
        Code::DataLoss => Unusable::Corrupt(reason),
        Code::NotFound => Unusable::Missing(reason),
        _ => Unusable::Transient(reason),
    }
}

/// Fetches a bundle into the own store; verified when it returns.
pub(crate) async fn get_bundle(
    context: &Arc<Context>,
    peer: &Peer,
    bundle: &BundleRef,
) -> Result<(), Failure> {
    let digest = Bytes::copy_from_slice(&bundle.digest.0);
    let request = pb::GetBundleRequest { cluster_id: context.cluster_text(), digest };
    let mut client = connect(peer)?;
    let within = deadline(bundle.size_bytes);
    let incoming = receive_bundle(&context.bundles, bundle.digest, bundle.size_bytes);
    let fetch = async {
        let stream = client.get_bundle(timed(request, within)).await?.into_inner();
        pour(stream, &incoming).await.map(Response::new)
    };
    answer(timeout(within, fetch).await)?;
    let refused = |err: ReceiveError| Failure::Fatal { reason: err.to_string() };
    incoming.finish().await.map_err(refused)
}

/// How many bytes came. `None`: no more were taken.
async fn pour<T: Send + 'static>(
    mut stream: impl Stream<Item = Result<pb::Chunk, Status>> + Unpin,
    incoming: &Incoming<T>,
) -> Result<Option<u64>, Status> {
    let mut came = 0;
    while let Some(chunk) = stream.next().await {
        let data = chunk?.data;
        came += data.len() as u64;
        if !incoming.push(data).await {
            // `finish` has the reason.
            return Ok(None);
        }
    }
    Ok(Some(came))
}
