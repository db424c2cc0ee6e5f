//! `outlast.peer.v1`: checks each call's cluster and bounds how many run at a time; the work is in the modules beside.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use outlast_blobs::pack::PackLimits;
use outlast_proto::peer::v1 as pb;
use outlast_proto::peer::v1::peer_service_server::PeerService;
use outlast_proto::status::Failure;
use outlast_types::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::connections::{Lane, Meetings};
use super::{logs, probe, seals, shards, stored};
use crate::context::{Context, blocking};
use crate::transfer::{ReceiveError, chain, receive_bundle};
use crate::worker::prune_bundles;

/// Transfers at a time. Each holds one blocking thread and about 13 MiB: 4 MiB between network and disk, 4 MiB that are
/// hashed, and what the connections have in their buffers.
const TRANSFERS_MAX: usize = 16;
/// Of these, shards that are verified before they are sent, because the caller passes them on. Each holds an extent of
/// 16 MiB beside its queue; so all transfers together stay within the 256 MiB that an agent may take.
const VERIFIED_MAX: usize = 4;
/// One more waits for so long: half of what the caller does for the first answer.
const VERIFIED_WAIT: Duration = Duration::from_secs(5);
/// Followed logs at a time: each costs a look at the disk every 100 ms.
const LOG_READERS_MAX: usize = 64;

pub(super) type Chunks = Pin<Box<dyn Stream<Item = Result<pb::Chunk, Status>> + Send>>;
pub(super) type LogRecords = Pin<Box<dyn Stream<Item = Result<pb::ReadLogResponse, Status>> + Send>>;

pub(crate) struct PeerServiceHandler {
    context: Arc<Context>,
    transfers: Arc<Semaphore>,
    verified: Arc<Semaphore>,
    log_readers: Arc<Semaphore>,
    lent: Arc<Meetings<shards::Lent>>,
    dealt: Arc<Meetings<Chunks>>,
}

impl PeerServiceHandler {
    pub(super) fn new(context: Arc<Context>) -> Self {
        let transfers = Arc::new(Semaphore::new(TRANSFERS_MAX));
        let verified = Arc::new(Semaphore::new(VERIFIED_MAX));
        let log_readers = Arc::new(Semaphore::new(LOG_READERS_MAX));
        Self { context, transfers, verified, log_readers, lent: Meetings::new(), dealt: Meetings::new() }
    }

    fn check_cluster(&self, theirs: &str) -> Result<(), Failure> {
        match self.context.folder.cluster() {
            Some(ours) if ours.as_str() == theirs => Ok(()),
            // After a recovery of the cluster one of the two may not have met the new one yet.
            Some(ours) => Err(Failure::Unavailable {
                reason: format!("this agent belongs to cluster {ours}, the caller to {theirs:?}"),
                hint: "if this lasts, check the addresses: two clusters are mixed up".to_owned(),
                retry_after_ms: 500,
            }),
            None => Err(Failure::Unavailable {
                reason: "this agent has not met its cluster yet".to_owned(),
                hint: String::new(),
                retry_after_ms: 500,
            }),
        }
    }
}

pub(super) fn permit(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    Arc::clone(of).try_acquire_owned().map_err(|_| full())
}

async fn permit_in_turn(of: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, Failure> {
    match timeout(VERIFIED_WAIT, Arc::clone(of).acquire_many_owned(count)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(full()),
    }
}

fn full() -> Failure {
    Failure::Exhausted {
        reason: "this agent serves as many transfers as it can".to_owned(),
        hint: String::new(),
        retry_after_ms: 500,
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, Failure> {
    Digest::try_from(bytes)
        .map_err(|err| Failure::Rejected { reason: format!("field `digest`: {err}"), hint: String::new() })
}

/// A stream's first message.
async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    stream.message().await?.ok_or_else(|| Status::invalid_argument("the stream is empty"))
}

#[tonic::async_trait]
impl PeerService for PeerServiceHandler {
    async fn put_shard(
        &self,
        request: Request<Streaming<pb::PutShardRequest>>,
    ) -> Result<Response<pb::PutShardResponse>, Status> {
        let mut stream = request.into_inner();
        let head = first(&mut stream).await?;
        self.check_cluster(&head.cluster_id)?;
        let lane = Lane::try_from(head.lane)?;
        if lane.index > 0 {
            return shards::lend(&self.lent, lane, stream).await.map(Response::new);
        }
        let _permit = permit(&self.transfers)?;
        shards::put(&self.context, &self.lent, (lane, head), stream).await.map(Response::new)
    }

    type GetShardStream = Chunks;

    async fn get_shard(&self, request: Request<pb::GetShardRequest>) -> Result<Response<Chunks>, Status> {
        let pb::GetShardRequest { cluster_id, key, look_only: _, lane } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        if lane.is_none() {
            let verified = permit_in_turn(&self.verified, 1).await?;
            let held = (verified, permit(&self.transfers)?);
            return shards::get_verified(&self.context, key, held).await.map(Response::new);
        }
        let lane = Lane::try_from(lane)?;
        if lane.index > 0 {
            return Ok(Response::new(self.dealt.take(lane).await?));
        }
        let permit = permit(&self.transfers)?;
        shards::get(&self.context, &self.dealt, (lane, key), permit).await.map(Response::new)
    }

    async fn verify_shard(
        &self,
        request: Request<pb::GetShardRequest>,
    ) -> Result<Response<pb::VerifyShardResponse>, Status> {
        let pb::GetShardRequest { cluster_id, key, look_only, lane: _ } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        let _permit = permit(&self.transfers)?;
        shards::verify(&self.context, key, look_only).await.map(Response::new)
    }

    type GetStoredShardStream = Chunks;

    async fn get_stored_shard(
        &self,
        request: Request<pb::GetShardRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let pb::GetShardRequest { cluster_id, key, look_only: _, lane: _ } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        // Two ranges in memory: one on its way to the caller, one from the store.
        let verified = permit_in_turn(&self.verified, 2).await?;
        let held = (verified, permit(&self.transfers)?);
        stored::get(&self.context, key, held).map(Response::new)
    }

    async fn verify_stored_shard(
        &self,
        request: Request<pb::GetShardRequest>,
    ) -> Result<Response<pb::VerifyShardResponse>, Status> {
        let pb::GetShardRequest { cluster_id, key, look_only, lane: _ } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        let _permit = permit(&self.transfers)?;
        stored::verify(&self.context, key, look_only).await.map(Response::new)
    }

    async fn put_bundle(
        &self,
        request: Request<Streaming<pb::PutBundleRequest>>,
    ) -> Result<Response<pb::PutBundleResponse>, Status> {
        let mut stream = request.into_inner();
        let pb::PutBundleRequest { cluster_id, digest: bytes, size_bytes, data } = first(&mut stream).await?;
        self.check_cluster(&cluster_id)?;
        let digest = digest(&bytes)?;
        let limit = PackLimits::BUNDLE_ARCHIVE_BYTES;
        if size_bytes > limit {
            let reason = format!("a bundle of {size_bytes} bytes is above the limit of {limit}");
            return Err(
                Failure::Rejected { reason, hint: "leave files out with .outlastignore".to_owned() }.into()
            );
        }
        let _permit = permit(&self.transfers)?;
        let incoming = receive_bundle(&self.context.bundles, digest, size_bytes);
        let mut takes_more = incoming.push(data).await;
        while takes_more {
            let Some(message) = stream.message().await? else { break };
            takes_more = incoming.push(message.data).await;
        }
        incoming.finish().await.map_err(Failure::from)?;
        prune_bundles(&self.context).await;
        Ok(Response::new(pb::PutBundleResponse { node: self.context.node.to_string() }))
    }

    type GetBundleStream = Chunks;

    async fn get_bundle(&self, request: Request<pb::GetBundleRequest>) -> Result<Response<Chunks>, Status> {
        let pb::GetBundleRequest { cluster_id, digest: bytes } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        let permit = permit(&self.transfers)?;
        let (store, digest) = (self.context.bundles.clone(), digest(&bytes)?);
        let opened = blocking(move || store.open_bundle(&digest)).await;
        let reader = opened.map_err(|err| match err {
            outlast_blobs::BundleError::Missing(_) => Status::not_found(err.to_string()),
            outlast_blobs::BundleError::Corrupt(_) => Status::data_loss(err.to_string()),
            other => Status::unavailable(chain(&other)),
        })?;
        Ok(Response::new(shards::chunks(reader, permit)))
    }

    type ProbeStream = Chunks;

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let permit = permit(&self.transfers)?;
        probe::answer(&self.context.node, &request, permit).map(Response::new)
    }

    type ReadLogStream = LogRecords;

    async fn read_log(&self, request: Request<pb::ReadLogRequest>) -> Result<Response<LogRecords>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let permit = permit(&self.log_readers)?;
        logs::read(&self.context, &request, permit).map(Response::new)
    }

    /// Whatever cluster asks: it is made of the answer. Nothing is changed, and no bytes of a checkpoint are given.
    async fn list_seals(
        &self,
        request: Request<pb::ListSealsRequest>,
    ) -> Result<Response<pb::ListSealsResponse>, Status> {
        let _permit = permit(&self.transfers)?;
        seals::list(&self.context, request.into_inner()).await.map(Response::new)
    }
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Self {
        let reason = error.to_string();
        match error {
            ReceiveError::Mismatch(_) => Failure::Rejected {
                reason,
                hint: "the bytes were damaged on their way: send them again".to_owned(),
            },
            ReceiveError::Late(_) => Failure::Fenced { reason },
            ReceiveError::Write(_) => {
                Failure::Unavailable { reason, hint: "try another node".to_owned(), retry_after_ms: 1_000 }
            }
        }
    }
}
