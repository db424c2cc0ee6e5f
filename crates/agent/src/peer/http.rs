//! `/healthz` and `/metrics` on the agent's port.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::context::Context;

pub(super) fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state(context)
}

async fn metrics(State(context): State<Arc<Context>>, headers: HeaderMap) -> impl IntoResponse {
    let bytes: u64 = context.shards.list().iter().map(|meta| meta.size_bytes).sum();
    context.metrics.shard_bytes.set(bytes as f64);
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, text) = context.metrics.render(accept);
    ([(CONTENT_TYPE, content_type)], text)
}
