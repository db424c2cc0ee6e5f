//! The gRPC side: takes messages apart, calls the verb, maps the failure.

use std::pin::Pin;

use futures::Stream;
use outlast_control::state::Command;
use outlast_proto::control::v1 as pb;
use outlast_proto::control::v1::control_service_server::ControlService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ControlHandler;

type Answer<T> = Result<Response<T>, Status>;
type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn source<T>(request: &Request<T>) -> Option<String> {
    request.remote_addr().map(|address| address.to_string())
}

#[tonic::async_trait]
impl ControlService for ControlHandler {
    type JobLogsStream = Pages<pb::JobLogsResponse>;
    type BackupClusterStream = Pages<pb::BackupClusterResponse>;
    type WatchEventsStream = Pages<pb::WatchEventsResponse>;
    type ReadShardStream = Pages<pb::ReadShardResponse>;

    async fn submit_job(&self, request: Request<pb::SubmitJobRequest>) -> Answer<pb::SubmitJobResponse> {
        let source = source(&request);
        Ok(Response::new(self.submit_job(request.into_inner(), source).await?))
    }
    async fn upload_bundle(
        &self,
        request: Request<Streaming<pb::UploadBundleRequest>>,
    ) -> Answer<pb::UploadBundleResponse> {
        Ok(Response::new(self.upload_bundle(request.into_inner()).await?))
    }
    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Answer<pb::ListJobsResponse> {
        Ok(Response::new(self.list_jobs(request.into_inner()).await?))
    }
    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Answer<pb::Job> {
        Ok(Response::new(self.get_job(&request.get_ref().job).await?))
    }
    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Answer<pb::Job> {
        let source = source(&request);
        Ok(Response::new(self.cancel_job(request.into_inner(), source).await?))
    }
    async fn explain_job(&self, request: Request<pb::ExplainJobRequest>) -> Answer<pb::ExplainJobResponse> {
        Ok(Response::new(self.explain_job(&request.get_ref().job).await?))
    }
    async fn job_logs(&self, request: Request<pb::JobLogsRequest>) -> Answer<Self::JobLogsStream> {
        let lines = self.job_logs(request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(lines))))
    }
    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let pages = self.watch_events(request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(pages))))
    }

    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        Ok(Response::new(self.list_nodes().await?))
    }
    async fn get_node(&self, request: Request<pb::GetNodeRequest>) -> Answer<pb::Node> {
        Ok(Response::new(self.get_node(&request.get_ref().node).await?))
    }
    async fn cordon_node(&self, request: Request<pb::NodeRequest>) -> Answer<pb::Node> {
        let source = source(&request);
        let command = |node| Command::CordonNode { node };
        Ok(Response::new(self.change_node(request.into_inner().into(), source, command).await?))
    }
    async fn uncordon_node(&self, request: Request<pb::NodeRequest>) -> Answer<pb::Node> {
        let source = source(&request);
        let command = |node| Command::UncordonNode { node };
        Ok(Response::new(self.change_node(request.into_inner().into(), source, command).await?))
    }
    async fn drain_node(&self, request: Request<pb::NodeRequest>) -> Answer<pb::Node> {
        let source = source(&request);
        let command = |node| Command::DrainNode { node };
        Ok(Response::new(self.change_node(request.into_inner().into(), source, command).await?))
    }
    async fn label_node(&self, request: Request<pb::LabelNodeRequest>) -> Answer<pb::Node> {
        let source = source(&request);
        Ok(Response::new(self.label_node(request.into_inner(), source).await?))
    }

    async fn list_checkpoints(
        &self,
        request: Request<pb::ListCheckpointsRequest>,
    ) -> Answer<pb::ListCheckpointsResponse> {
        Ok(Response::new(self.list_checkpoints(&request.get_ref().job).await?))
    }
    async fn get_checkpoint(&self, request: Request<pb::GetCheckpointRequest>) -> Answer<pb::Checkpoint> {
        Ok(Response::new(self.get_checkpoint(request.into_inner()).await?))
    }
    async fn verify_checkpoint(
        &self,
        request: Request<pb::VerifyCheckpointRequest>,
    ) -> Answer<pb::VerifyCheckpointResponse> {
        Ok(Response::new(self.verify_checkpoint(request.into_inner()).await?))
    }
    async fn read_shard(&self, request: Request<pb::ReadShardRequest>) -> Answer<Self::ReadShardStream> {
        let pages = self.read_shard(request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(pages))))
    }
    async fn pin_checkpoint(&self, request: Request<pb::PinCheckpointRequest>) -> Answer<pb::Checkpoint> {
        let source = source(&request);
        Ok(Response::new(self.pin_checkpoint(request.into_inner(), source).await?))
    }

    async fn cluster_status(
        &self,
        _: Request<pb::ClusterStatusRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        Ok(Response::new(self.cluster_status().await?))
    }
    async fn init_cluster(
        &self,
        request: Request<pb::InitClusterRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        Ok(Response::new(self.init_cluster(request.into_inner()).await?))
    }
    async fn join_cluster(
        &self,
        request: Request<pb::JoinClusterRequest>,
    ) -> Answer<pb::JoinClusterResponse> {
        let source = source(&request);
        Ok(Response::new(self.join_cluster(request.into_inner(), source).await?))
    }
    async fn promote_coordinator(
        &self,
        request: Request<pb::PromoteCoordinatorRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        let source = source(&request);
        Ok(Response::new(self.promote_coordinator(request.into_inner(), source).await?))
    }
    async fn remove_coordinator(
        &self,
        request: Request<pb::RemoveCoordinatorRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        let source = source(&request);
        Ok(Response::new(self.remove_coordinator(request.into_inner(), source).await?))
    }
    async fn upgrade_cluster(
        &self,
        request: Request<pb::UpgradeClusterRequest>,
    ) -> Answer<pb::ClusterStatusResponse> {
        let source = source(&request);
        Ok(Response::new(self.upgrade_cluster(request.into_inner(), source).await?))
    }
    async fn backup_cluster(
        &self,
        _: Request<pb::BackupClusterRequest>,
    ) -> Answer<Self::BackupClusterStream> {
        let pieces = self.backup_cluster().await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces))))
    }
}
