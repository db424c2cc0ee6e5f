//! For Prometheus: the numbers, and where more of them are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use outlast_control::state::NodeCondition;
use outlast_telemetry::Exposition;
use serde_json::{Value, json};

use crate::seat::Seat;

pub(super) async fn metrics(State(seat): State<Arc<Seat>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Exposition::negotiate(accept);
    let member = seat.member().ok();
    let text = seat.metrics.render(member.as_deref(), format).await;
    ([(header::CONTENT_TYPE, format.content_type())], text)
}

/// The whole list each time, from the own state: every coordinator can be asked.
pub(super) async fn targets(State(seat): State<Arc<Seat>>) -> Json<Value> {
    let Ok(member) = seat.member() else { return Json(json!([])) };
    let list = member.state(|state| {
        let coordinators = state.coordinators.iter().filter(|(_, record)| !record.removed).map(|(id, record)| {
            json!({
                "targets": [record.address],
                "labels": {"__meta_outlast_role": "coordinator", "__meta_outlast_coordinator": id, "__metrics_path__": "/metrics"},
            })
        });
        let alive = state.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
        let agents = alive.map(|node| {
            json!({
                "targets": [node.address],
                "labels": {"__meta_outlast_role": "agent", "__meta_outlast_node": node.id, "__metrics_path__": "/metrics"},
            })
        });
        coordinators.chain(agents).collect::<Vec<_>>()
    });
    Json(Value::Array(list))
}
