//! The agent's port: gRPC for peers and coordinators, HTTP for health and metrics.

use std::sync::Arc;
use std::time::Duration;

use outlast_host::net;
use outlast_proto::peer::v1::peer_service_server::PeerServiceServer;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;

use super::http;
use super::service::PeerServiceHandler;
use crate::context::Context;
use crate::transfer::MESSAGE_BYTES_MAX;

/// The largest answer is a page of seals: one of them may have thousands of ranks.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A peer that vanished in the middle of a transfer is noticed within this and [`KEEP_ALIVE_TIMEOUT`] together, and its
/// place given to another one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are still open so long after the shutdown are not waited for.
const DRAIN: Duration = Duration::from_millis(1_500);

/// Serves until the shutdown.
pub(crate) fn serve(context: &Arc<Context>, listeners: Vec<TcpListener>) {
    let service = PeerServiceServer::new(PeerServiceHandler::new(Arc::clone(context)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    let grpc = Routes::new(service).add_service(health).into_axum_router();
    let routes = Routes::from(http::router(Arc::clone(context)).merge(grpc)).prepare();
    context.tasks.spawn(async move { reporter.set_serving::<PeerServiceServer<PeerServiceHandler>>().await });
    for listener in listeners {
        let shutdown = context.shutdown.clone();
        // Without delay: what makes room for more bytes is small, and would wait for an acknowledgement each time.
        let server = Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .serve_with_incoming_shutdown(
                routes.clone(),
                net::incoming(listener),
                shutdown.clone().cancelled_owned(),
            );
        context.tasks.spawn(async move {
            let cut = async {
                shutdown.cancelled().await;
                tokio::time::sleep(DRAIN).await;
            };
            tokio::select! {
                served = server => {
                    if let Err(err) = served {
                        tracing::error!(error = %err, "the agent's port is not served any more");
                    }
                }
                () = cut => tracing::debug!("open connections are left to their own end"),
            }
        });
    }
}
