//! HTTP for people, scripts and scrapers: the same verbs as gRPC, as JSON; health; metrics; a page.

mod answer;
mod api;
mod guard;
mod health;
mod page;
mod scrape;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use outlast_proto::status::Failure;
use tonic::Status;

use crate::control_api::ControlHandler;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::seat::Seat;

/// Adds the HTTP routes to those of gRPC.
pub(crate) fn add_routes(grpc: Router, seat: &Arc<Seat>) -> Router {
    let handler = ControlHandler::new(seat.clone());
    let http = Router::new()
        .route("/", get(page::show))
        .route("/v1/cluster", get(api::cluster))
        .route("/v1/jobs", get(api::list_jobs).post(api::submit_job))
        .route("/v1/jobs/{job}", get(api::get_job).delete(api::cancel_job))
        .route("/v1/jobs/{job}/explain", get(api::explain_job))
        .route("/v1/jobs/{job}/checkpoints", get(api::list_checkpoints))
        .route("/v1/nodes", get(api::list_nodes))
        .route("/v1/nodes/{node}", get(api::get_node))
        .layer(from_fn_with_state(seat.clone(), guard::check_host))
        .layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX))
        .with_state(handler);
    let open = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(scrape::metrics))
        .route("/sd/prometheus", get(scrape::targets))
        .with_state(seat.clone());
    grpc.merge(http).merge(open).fallback(unknown)
}

/// A gRPC client gets its own kind of "no such method".
async fn unknown(request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return Status::unimplemented("no such method").into_http::<axum::body::Body>();
    }
    let failure = Failure::NotFound {
        what: format!("the path {}", request.uri().path()),
        hint: "the API begins at /v1; the cluster's page is /".to_owned(),
    };
    (StatusCode::NOT_FOUND, answer::body(&failure)).into_response()
}
