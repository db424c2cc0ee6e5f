//! Streams a snapshot file to a peer on its bulk channel.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use openraft::Snapshot;
use outlast_proto::raft::v1::{self as pb, install_snapshot_request::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::convert;
use super::peer::Peer;
use crate::types::{TypeConfig, Vote};

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the network.
const CHUNKS_QUEUED: usize = 4;
/// The slowest network that a snapshot is worth sending over.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// Sends the file and waits until the peer has installed it; returns the peer's vote. `patience` is what is waited on
/// top of the time that the bytes may take.
pub(crate) async fn send_snapshot(
    peer: &Peer,
    vote: Vote,
    snapshot: &Snapshot<TypeConfig>,
    patience: Duration,
) -> Result<Vote, Status> {
    let file = Arc::clone(&snapshot.snapshot.file);
    let size_bytes = file.metadata().map_err(|err| Status::internal(err.to_string()))?.len();
    let head = pb::SnapshotHead {
        route: Some(peer.route.clone()),
        vote: Some(convert::vote_to_pb(&vote)),
        last_log: snapshot.meta.last_log_id.as_ref().map(convert::log_id_to_pb),
        size_bytes,
    };
    let (tx, rx) = mpsc::channel(CHUNKS_QUEUED);
    tokio::spawn(async move {
        let part = |part| pb::InstallSnapshotRequest { part: Some(part) };
        let mut at = 0;
        let mut sent = tx.send(part(Part::Head(head))).await.is_ok();
        while sent && at < size_bytes {
            let from = Arc::clone(&file);
            // A read that panicked has nothing to send either.
            let chunk = outlast_host::blocking(move || read_chunk(&from, at)).await.unwrap_or_default();
            at += chunk.len() as u64;
            sent = !chunk.is_empty() && tx.send(part(Part::Chunk(chunk))).await.is_ok();
        }
    });
    let deadline = patience + Duration::from_secs(size_bytes / BYTES_PER_SECOND_MIN);
    let mut request = Request::new(ReceiverStream::new(rx));
    request.set_timeout(deadline);
    let mut client = peer.bulk.clone();
    let response = tokio::time::timeout(deadline, client.install_snapshot(request)).await;
    let response =
        response.map_err(|_| Status::deadline_exceeded("the snapshot was not installed in time"))??;
    convert::vote_from_pb(response.into_inner().vote).map_err(|err| Status::internal(err.to_string()))
}

/// The receiver finds a file that ends early; the reason is logged here.
fn read_chunk(file: &File, at: u64) -> Vec<u8> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let read =
        file.read_at(&mut chunk, at).inspect_err(|err| tracing::error!(%err, "a snapshot cannot be read"));
    chunk.truncate(read.unwrap_or(0));
    chunk
}
