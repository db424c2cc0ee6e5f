//! One port for everything: gRPC with reflection and health, and HTTP/1 for people and scrapers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use outlast_host::net::{self, TcpListener};
use outlast_proto::FILE_DESCRIPTOR_SET;
use outlast_proto::control::v1::control_service_server::ControlServiceServer;
use outlast_proto::node::v1::node_service_server::NodeServiceServer;
use outlast_proto::relay::v1::relay_service_server::RelayServiceServer;
use outlast_proto::status::Failure;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::ServiceExt as _;

use crate::control_api::ControlHandler;
use crate::http;
use crate::limits::{MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX};
use crate::relay::RelayHandler;
use crate::seat::{Seat, no_cluster};
use crate::session::NodeHandler;

/// The Raft service of a seated member, as routes that can be put in when the seat is taken.
#[derive(Clone)]
pub(crate) struct RaftRoutes(pub(crate) Router);

/// Calls that are worked on at a time, of all connections; more are answered at once with "try again".
const CALLS_MAX: usize = 4_096;
/// A client that is gone is noticed within this and [`KEEP_ALIVE_TIMEOUT`] together.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are still open after the shutdown are cut.
const DRAIN: Duration = Duration::from_millis(1_500);

/// Serves until the shutdown, then gives open calls a moment.
pub(crate) async fn serve(seat: Arc<Seat>, listener: TcpListener, shutdown: CancellationToken) {
    let routes = Routes::from(routes(&seat)).prepare();
    let incoming = net::incoming(listener);
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .serve_with_incoming_shutdown(routes, incoming, shutdown.clone().cancelled_owned());
    let cut = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => {
            if let Err(error) = served {
                tracing::error!(%error, "the server ended");
            }
        }
        () = cut => tracing::debug!("open connections are cut"),
    }
}

fn routes(seat: &Arc<Seat>) -> Router {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let control = ControlServiceServer::new(ControlHandler::new(seat.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let node = NodeServiceServer::new(NodeHandler { seat: seat.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let relay = RelayServiceServer::new(RelayHandler { seat: seat.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (_, health) = tonic_health::server::health_reporter();
    let grpc = Routes::new(control)
        .add_service(node)
        .add_service(relay)
        .add_service(health)
        .add_service(reflection().build_v1().expect("our own descriptors are well formed"))
        .add_service(reflection().build_v1alpha().expect("our own descriptors are well formed"))
        .into_axum_router()
        .route("/outlast.raft.v1.RaftService/{*rest}", axum::routing::any(raft).with_state(seat.clone()));
    let counted = CallLimit { seat: seat.clone(), free: Arc::new(tokio::sync::Semaphore::new(CALLS_MAX)) };
    http::add_routes(grpc, seat).layer(from_fn_with_state(counted, count_and_limit))
}

/// Raft between coordinators; refused until this one belongs to a cluster.
async fn raft(State(seat): State<Arc<Seat>>, request: Request) -> Response {
    match seat.seated() {
        Some(seated) => seated.raft.0.oneshot(request).await.into_response(),
        None => Status::from(no_cluster()).into_http::<axum::body::Body>(),
    }
}

#[derive(Clone)]
struct CallLimit {
    seat: Arc<Seat>,
    free: Arc<tokio::sync::Semaphore>,
}

/// Counts every call, and refuses those that are too many; Raft and relayed heartbeats are never refused, or load would
/// cost leases.
async fn count_and_limit(State(limit): State<CallLimit>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_inner = path.starts_with("/outlast.raft.") || path.starts_with("/outlast.relay.");
    let route = route_name(path);
    let permit = limit.free.try_acquire();
    if permit.is_err() && !is_inner {
        limit.seat.metrics.count_call(&route, "busy", Duration::ZERO);
        return Status::from(busy()).into_http::<axum::body::Body>();
    }
    let begun = Instant::now();
    let response = next.run(request).await;
    limit.seat.metrics.count_call(&route, &code_of(&response), begun.elapsed());
    response
}

fn busy() -> Failure {
    Failure::Exhausted {
        reason: "this coordinator works on too many calls".to_owned(),
        hint: "try again, or ask another coordinator".to_owned(),
        retry_after_ms: 200,
    }
}

/// A bounded set: what a path names is left out, and unknown paths are one.
fn route_name(path: &str) -> String {
    let is_word = path.len() < 100 && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let mut parts: Vec<&str> = path.split('/').collect();
    match parts.as_mut_slice() {
        ["", service, _] if is_word && (service.starts_with("outlast.") || service.starts_with("grpc.")) => {}
        ["", "" | "healthz" | "readyz" | "metrics"] | ["", "sd", "prometheus"] => {}
        ["", "v1", "cluster" | "jobs" | "nodes"] => {}
        ["", "v1", "jobs" | "nodes", name] | ["", "v1", "jobs", name, "explain" | "checkpoints"] => {
            *name = "{name}"
        }
        _ => return "other".to_owned(),
    }
    parts.join("/")
}

/// The gRPC status where the head of the answer has one, else that of HTTP.
fn code_of(response: &Response) -> String {
    let grpc = response.headers().get("grpc-status").and_then(|value| value.to_str().ok());
    match grpc {
        Some(code) => format!("grpc_{code}"),
        None => response.status().as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_no_labels() {
        assert_eq!(route_name("/v1/jobs/digits/explain"), "/v1/jobs/{name}/explain");
        assert_eq!(route_name("/v1/nodes/n1"), "/v1/nodes/{name}");
        assert_eq!(
            route_name("/outlast.control.v1.ControlService/GetJob"),
            "/outlast.control.v1.ControlService/GetJob"
        );
        assert_eq!(route_name("/wp-admin/setup.php"), "other");
    }
}
