//! The server's side: hands requests to openraft after checking that they are meant for this coordinator.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::Snapshot;
use outlast_proto::raft::v1::install_snapshot_request::Part;
use outlast_proto::raft::v1::{self as pb, raft_service_server::RaftService};
use outlast_types::ClusterId;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, WireError};
use crate::folder::DiskRoom;
use crate::snapshot::{SnapshotData, Snapshots};
use crate::types::{Raft, Vote};

/// A sender that is silent for so long has gone.
const CHUNK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Only a leader sends, and only one; a second one is a leader that does not know yet.
const RECEIVED_AT_ONCE: usize = 1;

/// Answers [`RaftService`] for one coordinator.
pub struct RaftHandler {
    raft: Raft,
    cluster_id: ClusterId,
    own_id: u64,
    snapshots: Snapshots,
    room: Arc<RwLock<DiskRoom>>,
    receiving: Semaphore,
}

/// Removes the file of a snapshot that did not come whole, also where the sender hung up and this call is dropped: a
/// leader tries again and again, and each try would leave one behind.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    /// From here on the file is openraft's, whatever becomes of the call.
    fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What cannot be removed goes at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn malformed(err: WireError) -> Status {
    Status::invalid_argument(crate::fatal::chain(&err))
}

fn stopped(err: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this coordinator has stopped: {err}"))
}

fn internal(err: impl std::error::Error) -> Status {
    Status::internal(crate::fatal::chain(&err))
}

impl RaftHandler {
    pub(crate) fn new(
        raft: Raft,
        cluster_id: ClusterId,
        own_id: u64,
        snapshots: Snapshots,
        room: Arc<RwLock<DiskRoom>>,
    ) -> Self {
        Self { raft, cluster_id, own_id, snapshots, room, receiving: Semaphore::new(RECEIVED_AT_ONCE) }
    }

    fn check(&self, route: Option<&pb::Route>) -> Result<(), Status> {
        let route = route.ok_or_else(|| Status::invalid_argument("field route is missing"))?;
        if route.cluster_id != self.cluster_id.as_str() {
            let (asked, own) = (&route.cluster_id, &self.cluster_id);
            return Err(Status::failed_precondition(format!(
                "this coordinator belongs to cluster {own}, not {asked}"
            )));
        }
        if route.to != self.own_id {
            let (asked, own) = (route.to, self.own_id);
            return Err(Status::failed_precondition(format!("this coordinator is c{own}, not c{asked}")));
        }
        Ok(())
    }

    /// Writes the stream into a file; its contents are checked when it is whole.
    async fn receive(
        &self,
        head: &pb::SnapshotHead,
        mut stream: Streaming<pb::InstallSnapshotRequest>,
        data: &SnapshotData,
    ) -> Result<(), Status> {
        let mut at = 0;
        loop {
            let next = tokio::time::timeout(CHUNK_WAIT_MAX, stream.message()).await;
            let Some(message) =
                next.map_err(|_| Status::deadline_exceeded("the snapshot's sender is silent"))??
            else {
                break;
            };
            let Some(Part::Chunk(chunk)) = message.part else {
                return Err(Status::invalid_argument("only chunks may follow the head"));
            };
            if at + chunk.len() as u64 > head.size_bytes {
                return Err(Status::invalid_argument("the snapshot is longer than announced"));
            }
            let (file, from) = (Arc::clone(&data.file), at);
            at += chunk.len() as u64;
            let written = outlast_host::blocking(move || file.write_all_at(&chunk, from)).await;
            written.map_err(internal)?.map_err(internal)?;
        }
        if at == head.size_bytes { Ok(()) } else { Err(Status::data_loss("the snapshot ended early")) }
    }

    /// Verifies before openraft hears of it: what openraft installs has to be good.
    async fn install(&self, vote: Vote, data: SnapshotData, unfinished: Unfinished) -> Result<Vote, Status> {
        let (snapshots, checked) = (self.snapshots.clone(), data.clone());
        let verified =
            outlast_host::blocking(move || snapshots.verified(&checked)).await.map_err(internal)?;
        let (head, _) = verified.map_err(|err| Status::data_loss(crate::fatal::chain(&err)))?;
        unfinished.finish();
        let snapshot = Snapshot { meta: head.meta(), snapshot: Box::new(data) };
        Ok(self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?.vote)
    }

    async fn own_vote(&self) -> Result<Vote, Status> {
        self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(stopped)
    }
}

#[tonic::async_trait]
impl RaftService for RaftHandler {
    async fn append(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        let request = request.into_inner();
        self.check(request.route.as_ref())?;
        let rpc = convert::append_from_pb(request).map_err(malformed)?;
        let response = self.raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::appended_to_pb(&response, self.room.read().is_short())))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        self.check(request.route.as_ref())?;
        let rpc = convert::vote_request_from_pb(request).map_err(malformed)?;
        let response = self.raft.vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::voted_to_pb(&response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::InstallSnapshotRequest>>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        let mut stream = request.into_inner();
        let Some(pb::InstallSnapshotRequest { part: Some(Part::Head(head)) }) = stream.message().await?
        else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        self.check(head.route.as_ref())?;
        let vote = convert::vote_from_pb(head.vote).map_err(malformed)?;
        let own = self.own_vote().await?;
        let answer = |vote: Vote| {
            Response::new(pb::InstallSnapshotResponse { vote: Some(convert::vote_to_pb(&vote)) })
        };
        // A leader of the past: its bytes need not travel.
        if own > vote {
            return Ok(answer(own));
        }
        let busy = || Status::unavailable("another snapshot is being received");
        let _permit = self.receiving.try_acquire().map_err(|_| busy())?;
        let data = self.snapshots.incoming().map_err(internal)?;
        let path = data.path.clone();
        let unfinished = Unfinished(Some(path.clone()));
        self.receive(&head, stream, &data).await?;
        let installed = self.install(vote, data, unfinished).await;
        // Installed, it has another name; refused, nobody needs it.
        let _ = std::fs::remove_file(path);
        installed.map(answer)
    }
}
