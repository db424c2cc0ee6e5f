//! `/v1`: the verbs of the control API with the field names of its messages.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use outlast_proto::control::v1 as pb;
use serde::Deserialize;
use tonic::transport::server::TcpConnectInfo;

use super::answer::Answer;
use crate::control_api::ControlHandler;

/// Who changes something through HTTP, as far as is known.
const ACTOR: &str = "http";

#[derive(Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    active_only: bool,
    #[serde(default)]
    limit: u32,
}

#[derive(Deserialize)]
pub(super) struct ChangeQuery {
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    reason: String,
}

fn source(connection: Option<Extension<TcpConnectInfo>>) -> Option<String> {
    connection?.remote_addr().map(|address| address.to_string())
}

pub(super) async fn cluster(State(handler): State<ControlHandler>) -> Answer<pb::ClusterStatusResponse> {
    Ok(Json(handler.cluster_status().await?))
}

pub(super) async fn list_jobs(
    State(handler): State<ControlHandler>,
    Query(query): Query<ListQuery>,
) -> Answer<pb::ListJobsResponse> {
    let request = pb::ListJobsRequest { active_only: query.active_only, limit: query.limit };
    Ok(Json(handler.list_jobs(request).await?))
}

/// The body is the job file as JSON. A job with a `workdir` needs the CLI, which uploads it.
pub(super) async fn submit_job(
    State(handler): State<ControlHandler>,
    Query(query): Query<ChangeQuery>,
    connection: Option<Extension<TcpConnectInfo>>,
    body: Bytes,
) -> Answer<pb::SubmitJobResponse> {
    let request = pb::SubmitJobRequest {
        request_id: query.request_id,
        spec_json: String::from_utf8_lossy(&body).into_owned(),
        bundle_digest: String::new(),
        actor: ACTOR.to_owned(),
    };
    Ok(Json(handler.submit_job(request, source(connection)).await?))
}

pub(super) async fn get_job(
    State(handler): State<ControlHandler>,
    Path(job): Path<String>,
) -> Answer<pb::Job> {
    Ok(Json(handler.get_job(&job).await?))
}

pub(super) async fn cancel_job(
    State(handler): State<ControlHandler>,
    Path(job): Path<String>,
    Query(query): Query<ChangeQuery>,
    connection: Option<Extension<TcpConnectInfo>>,
) -> Answer<pb::Job> {
    let ChangeQuery { request_id, reason } = query;
    let request = pb::CancelJobRequest { request_id, job, reason, actor: ACTOR.to_owned() };
    Ok(Json(handler.cancel_job(request, source(connection)).await?))
}

pub(super) async fn explain_job(
    State(handler): State<ControlHandler>,
    Path(job): Path<String>,
) -> Answer<pb::ExplainJobResponse> {
    Ok(Json(handler.explain_job(&job).await?))
}

pub(super) async fn list_checkpoints(
    State(handler): State<ControlHandler>,
    Path(job): Path<String>,
) -> Answer<pb::ListCheckpointsResponse> {
    Ok(Json(handler.list_checkpoints(&job).await?))
}

pub(super) async fn list_nodes(State(handler): State<ControlHandler>) -> Answer<pb::ListNodesResponse> {
    Ok(Json(handler.list_nodes().await?))
}

pub(super) async fn get_node(
    State(handler): State<ControlHandler>,
    Path(node): Path<String>,
) -> Answer<pb::Node> {
    Ok(Json(handler.get_node(&node).await?))
}
