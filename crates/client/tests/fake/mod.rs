//! A coordinator in this process that answers as a test tells it to.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_proto::control::v1 as pb;
use outlast_proto::control::v1::control_service_server::{ControlService, ControlServiceServer};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// How calls end here.
#[derive(Clone)]
pub(crate) enum Mood {
    Serves,
    Hangs,
    /// Answers, but late.
    Slow(std::time::Duration),
    Refuses(outlast_proto::status::Failure),
}

pub(crate) struct Fake {
    pub(crate) mood: Mutex<Mood>,
    /// Of every SubmitJob that arrived.
    pub(crate) request_ids: Mutex<Vec<String>>,
    /// Of every JobLogs that arrived.
    pub(crate) log_requests: Mutex<Vec<pb::JobLogsRequest>>,
    /// The batches of the log stream; afterwards it breaks.
    pub(crate) log_batches: Mutex<Vec<pb::JobLogsResponse>>,
    pub(crate) log_end: Mutex<Option<Status>>,
    pub(crate) peers: Mutex<Vec<String>>,
    pub(crate) uploaded: Mutex<Vec<u8>>,
    /// The pieces of every shard; afterwards it ends, or breaks.
    pub(crate) shard_pieces: Mutex<Vec<pb::ReadShardResponse>>,
    pub(crate) shard_end: Mutex<Option<Status>>,
}

pub(crate) struct Running {
    pub(crate) fake: Arc<Fake>,
    pub(crate) url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) fn kill(&self) {
        self.server.abort();
    }
}

impl Fake {
    async fn gate(&self) -> Result<(), Status> {
        let mood = self.mood.lock().expect("no test panics with it").clone();
        match mood {
            Mood::Serves => Ok(()),
            Mood::Hangs => {
                std::future::pending::<()>().await;
                Ok(())
            }
            Mood::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Mood::Refuses(failure) => Err(failure.into()),
        }
    }
}

pub(crate) async fn start(mood: Mood) -> Running {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address: SocketAddr = listener.local_addr().expect("is bound");
    let fake = Arc::new(Fake {
        mood: Mutex::new(mood),
        request_ids: Mutex::default(),
        log_requests: Mutex::default(),
        log_batches: Mutex::default(),
        log_end: Mutex::default(),
        peers: Mutex::default(),
        uploaded: Mutex::default(),
        shard_pieces: Mutex::default(),
        shard_end: Mutex::default(),
    });
    let service = ControlServiceServer::from_arc(Arc::clone(&fake));
    let server = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
            .expect("serves");
    });
    Running { fake, url: format!("http://{address}"), server }
}

/// A port where nobody listens.
pub(crate) async fn dead_url() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    format!("http://{}", listener.local_addr().expect("is bound"))
}

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

macro_rules! absent {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        // The attribute does not see into macros, so this is what it would make of an `async fn`.
        $(fn $method<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($method))) })
        })*
    };
}

#[tonic::async_trait]
impl ControlService for Fake {
    type BackupClusterStream = Items<pb::BackupClusterResponse>;
    type JobLogsStream = Items<pb::JobLogsResponse>;
    type WatchEventsStream = Items<pb::WatchEventsResponse>;
    type ReadShardStream = Items<pb::ReadShardResponse>;

    async fn submit_job(&self, request: Request<pb::SubmitJobRequest>) -> Answer<pb::SubmitJobResponse> {
        self.request_ids.lock().expect("unpoisoned").push(request.into_inner().request_id);
        self.gate().await?;
        Ok(Response::new(pb::SubmitJobResponse { job_id: "j1".into(), name: "digits".into() }))
    }

    async fn upload_bundle(
        &self,
        request: Request<Streaming<pb::UploadBundleRequest>>,
    ) -> Answer<pb::UploadBundleResponse> {
        self.gate().await?;
        let mut stream = request.into_inner();
        let mut bytes = Vec::new();
        let mut digest = String::new();
        while let Some(message) = stream.message().await? {
            bytes.extend(message.chunk);
            if !message.digest.is_empty() {
                digest = message.digest;
            }
        }
        let size_bytes = bytes.len() as u64;
        *self.uploaded.lock().expect("unpoisoned") = bytes;
        Ok(Response::new(pb::UploadBundleResponse { digest, size_bytes, holders: Vec::new() }))
    }

    async fn get_job(&self, _: Request<pb::GetJobRequest>) -> Answer<pb::Job> {
        self.gate().await?;
        let finished_at = Some(outlast_types::WallTime(1).into());
        Ok(Response::new(pb::Job { id: "j1".into(), finished_at, ..pb::Job::default() }))
    }

    async fn job_logs(&self, request: Request<pb::JobLogsRequest>) -> Answer<Self::JobLogsStream> {
        self.gate().await?;
        self.log_requests.lock().expect("unpoisoned").push(request.into_inner());
        let batches = self.log_batches.lock().expect("unpoisoned").clone();
        let end = self.log_end.lock().expect("unpoisoned").clone();
        let items = batches.into_iter().map(Ok).chain(end.map(Err));
        Ok(Response::new(Box::pin(futures::stream::iter(items.collect::<Vec<_>>()))))
    }

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        self.gate().await?;
        let from = request.into_inner().from_index.max(10);
        let batch = |index| Ok(pb::WatchEventsResponse { index, ..Default::default() });
        let items = vec![batch(from - 1), batch(from), batch(from + 1), Err(Status::unavailable("dies"))];
        Ok(Response::new(Box::pin(futures::stream::iter(items))))
    }

    async fn read_shard(&self, _: Request<pb::ReadShardRequest>) -> Answer<Self::ReadShardStream> {
        self.gate().await?;
        let pieces = self.shard_pieces.lock().expect("unpoisoned").clone();
        let end = self.shard_end.lock().expect("unpoisoned").clone();
        let items = pieces.into_iter().map(Ok).chain(end.map(Err));
        Ok(Response::new(Box::pin(futures::stream::iter(items.collect::<Vec<_>>()))))
    }

    async fn cluster_status(
        &self,
        _: Request<pb::ClusterStatusRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        self.gate().await?;
        let peers = self.peers.lock().expect("unpoisoned").clone();
        let coordinator = |address| pb::Coordinator { address, ..Default::default() };
        let coordinators = peers.into_iter().map(coordinator).collect();
        Ok(Response::new(pb::ClusterStatusResponse { coordinators, ..Default::default() }))
    }

    /// In two pieces; a coordinator whose stream of lines breaks breaks here too.
    async fn backup_cluster(
        &self,
        _: Request<pb::BackupClusterRequest>,
    ) -> Answer<Self::BackupClusterStream> {
        self.gate().await?;
        let first = pb::BackupClusterResponse {
            chunk: b"first ".to_vec(),
            size_bytes: 12,
            ..pb::BackupClusterResponse::default()
        };
        let second = pb::BackupClusterResponse { chunk: b"second".to_vec(), ..Default::default() };
        let end = self.log_end.lock().expect("unpoisoned").clone();
        let items: Vec<_> = [first, second].into_iter().map(Ok).chain(end.map(Err)).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(items))))
    }

    absent! {
        list_jobs(pb::ListJobsRequest) -> pb::ListJobsResponse;
        cancel_job(pb::CancelJobRequest) -> pb::Job;
        explain_job(pb::ExplainJobRequest) -> pb::ExplainJobResponse;
        list_nodes(pb::ListNodesRequest) -> pb::ListNodesResponse;
        get_node(pb::GetNodeRequest) -> pb::Node;
        cordon_node(pb::NodeRequest) -> pb::Node;
        uncordon_node(pb::NodeRequest) -> pb::Node;
        drain_node(pb::NodeRequest) -> pb::Node;
        label_node(pb::LabelNodeRequest) -> pb::Node;
        list_checkpoints(pb::ListCheckpointsRequest) -> pb::ListCheckpointsResponse;
        get_checkpoint(pb::GetCheckpointRequest) -> pb::Checkpoint;
        verify_checkpoint(pb::VerifyCheckpointRequest) -> pb::VerifyCheckpointResponse;
        pin_checkpoint(pb::PinCheckpointRequest) -> pb::Checkpoint;
        init_cluster(pb::InitClusterRequest) -> pb::ClusterStatusResponse;
        join_cluster(pb::JoinClusterRequest) -> pb::JoinClusterResponse;
        promote_coordinator(pb::PromoteCoordinatorRequest) -> pb::ClusterStatusResponse;
        remove_coordinator(pb::RemoveCoordinatorRequest) -> pb::ClusterStatusResponse;
        upgrade_cluster(pb::UpgradeClusterRequest) -> pb::ClusterStatusResponse;
    }
}

/// Waits for a condition; the test fails when it does not come true for long.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
