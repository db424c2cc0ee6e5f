//! The unary calls, one method each.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_proto::control::v1 as pb;

use crate::budget::Budget;
use crate::{Client, ClientError, new_request_id};

/// Every holder reads every byte: at 200 MB/s this is more than 100 GB a node.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);
/// Joining and removing wait for a configuration to commit, in two phases.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);

/// A call that is answered at once.
macro_rules! unary {
    ($client:expr, $method:ident, $message:expr) => {
        call!($client, Budget::unary($client.timeout), $method, $message)
    };
}

macro_rules! call {
    ($client:expr, $budget:expr, $method:ident, $message:expr) => {
        $client
            .call($budget, $message, |mut stub, request| Box::pin(async move { stub.$method(request).await }))
            .await
    };
}

impl Client {
    /// # Errors
    /// As [`ClientError`] says; the same holds for every method here.
    pub async fn submit_job(
        &self,
        spec_json: String,
        bundle_digest: String,
    ) -> Result<pb::SubmitJobResponse, ClientError> {
        self.submit_job_as(new_request_id(), spec_json, bundle_digest).await
    }

    /// Under a request id of the caller's: sent again after an unknown outcome, it is the same submission.
    pub async fn submit_job_as(
        &self,
        request_id: String,
        spec_json: String,
        bundle_digest: String,
    ) -> Result<pb::SubmitJobResponse, ClientError> {
        let actor = self.actor.to_string();
        unary!(self, submit_job, pb::SubmitJobRequest { request_id, spec_json, bundle_digest, actor })
    }

    pub async fn list_jobs(
        &self,
        active_only: bool,
        limit: u32,
    ) -> Result<pb::ListJobsResponse, ClientError> {
        unary!(self, list_jobs, pb::ListJobsRequest { active_only, limit })
    }

    /// `job` is an id or a name.
    pub async fn get_job(&self, job: &str) -> Result<pb::Job, ClientError> {
        unary!(self, get_job, pb::GetJobRequest { job: job.to_owned() })
    }

    pub async fn cancel_job(&self, job: &str, reason: &str) -> Result<pb::Job, ClientError> {
        let request_id = new_request_id();
        let (job, reason, actor) = (job.to_owned(), reason.to_owned(), self.actor.to_string());
        unary!(self, cancel_job, pb::CancelJobRequest { request_id, job, reason, actor })
    }

    pub async fn explain_job(&self, job: &str) -> Result<pb::ExplainJobResponse, ClientError> {
        unary!(self, explain_job, pb::ExplainJobRequest { job: job.to_owned() })
    }

    pub async fn list_nodes(&self) -> Result<Vec<pb::Node>, ClientError> {
        Ok(unary!(self, list_nodes, pb::ListNodesRequest {})?.nodes)
    }

    pub async fn get_node(&self, node: &str) -> Result<pb::Node, ClientError> {
        unary!(self, get_node, pb::GetNodeRequest { node: node.to_owned() })
    }

    pub async fn cordon_node(&self, node: &str) -> Result<pb::Node, ClientError> {
        unary!(self, cordon_node, self.node_request(node))
    }

    pub async fn uncordon_node(&self, node: &str) -> Result<pb::Node, ClientError> {
        unary!(self, uncordon_node, self.node_request(node))
    }

    pub async fn drain_node(&self, node: &str) -> Result<pb::Node, ClientError> {
        unary!(self, drain_node, self.node_request(node))
    }

    pub async fn label_node(
        &self,
        node: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<pb::Node, ClientError> {
        let (request_id, actor) = (new_request_id(), self.actor.to_string());
        let set = set.into_iter().collect();
        unary!(
            self,
            label_node,
            pb::LabelNodeRequest { request_id, node: node.to_owned(), set, remove, actor }
        )
    }

    fn node_request(&self, node: &str) -> pb::NodeRequest {
        pb::NodeRequest { request_id: new_request_id(), node: node.to_owned(), actor: self.actor.to_string() }
    }

    pub async fn list_checkpoints(&self, job: &str) -> Result<pb::ListCheckpointsResponse, ClientError> {
        unary!(self, list_checkpoints, pb::ListCheckpointsRequest { job: job.to_owned() })
    }

    pub async fn get_checkpoint(&self, job: &str, checkpoint: &str) -> Result<pb::Checkpoint, ClientError> {
        unary!(self, get_checkpoint, checkpoint_request(job, checkpoint))
    }

    /// Asks the holders of these ranks (none: of all) for their copies. `deep`: takes as long as reading every copy.
    pub async fn verify_checkpoint(
        &self,
        job: &str,
        checkpoint: &str,
        deep: bool,
        ranks: &[u32],
    ) -> Result<pb::VerifyCheckpointResponse, ClientError> {
        let budget = Budget::slow(self.timeout, VERIFY_TIMEOUT);
        let (job, checkpoint, ranks) = (job.to_owned(), checkpoint.to_owned(), ranks.to_vec());
        call!(self, budget, verify_checkpoint, pb::VerifyCheckpointRequest { job, checkpoint, deep, ranks })
    }

    pub async fn pin_checkpoint(
        &self,
        job: &str,
        checkpoint: &str,
        pinned: bool,
    ) -> Result<pb::Checkpoint, ClientError> {
        let (request_id, actor) = (new_request_id(), self.actor.to_string());
        let (job, checkpoint) = (job.to_owned(), checkpoint.to_owned());
        unary!(self, pin_checkpoint, pb::PinCheckpointRequest { request_id, job, checkpoint, pinned, actor })
    }

    pub async fn cluster_status(&self) -> Result<pb::ClusterStatusResponse, ClientError> {
        call!(self, Budget::status(self.timeout), cluster_status, pb::ClusterStatusRequest {})
    }

    /// Makes the first endpoint of this client, and no other, the first member of a new cluster.
    pub async fn init_cluster(&self, profile: &str) -> Result<pb::ClusterStatusResponse, ClientError> {
        let first = self.endpoints().into_iter().take(1).collect();
        let only = Client::new(first)?.with_timeout(self.timeout).with_actor(&self.actor);
        let budget = Budget::slow(self.timeout, MEMBERSHIP_TIMEOUT);
        call!(only, budget, init_cluster, pb::InitClusterRequest { profile: profile.to_owned() })
    }

    /// Asks for an id for the coordinator at `address`.
    pub async fn join_cluster(
        &self,
        address: &str,
        feature_level: u32,
    ) -> Result<pb::JoinClusterResponse, ClientError> {
        let budget = Budget::slow(self.timeout, MEMBERSHIP_TIMEOUT);
        call!(
            self,
            budget,
            join_cluster,
            pb::JoinClusterRequest { address: address.to_owned(), feature_level }
        )
    }

    pub async fn promote_coordinator(&self, id: &str) -> Result<pb::ClusterStatusResponse, ClientError> {
        let budget = Budget::slow(self.timeout, MEMBERSHIP_TIMEOUT);
        call!(
            self,
            budget,
            promote_coordinator,
            pb::PromoteCoordinatorRequest { coordinator_id: id.to_owned() }
        )
    }

    /// Raises the feature level to the highest that every member knows.
    pub async fn upgrade_cluster(&self) -> Result<pb::ClusterStatusResponse, ClientError> {
        let (request_id, actor) = (new_request_id(), self.actor.to_string());
        unary!(self, upgrade_cluster, pb::UpgradeClusterRequest { request_id, actor })
    }

    pub async fn remove_coordinator(&self, id: &str) -> Result<pb::ClusterStatusResponse, ClientError> {
        let (request_id, actor) = (new_request_id(), self.actor.to_string());
        let budget = Budget::slow(self.timeout, MEMBERSHIP_TIMEOUT);
        let message = pb::RemoveCoordinatorRequest { request_id, coordinator_id: id.to_owned(), actor };
        call!(self, budget, remove_coordinator, message)
    }
}

fn checkpoint_request(job: &str, checkpoint: &str) -> pb::GetCheckpointRequest {
    pb::GetCheckpointRequest { job: job.to_owned(), checkpoint: checkpoint.to_owned() }
}
