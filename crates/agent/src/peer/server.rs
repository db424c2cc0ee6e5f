//! The agent's port: gRPC for peers and coordinators, HTTP for health and metrics.

use std::sync::Arc;

use outlast_proto::peer::v1::peer_service_server::PeerServiceServer;
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::http;
use super::service::PeerServiceHandler;
use crate::context::Context;
use crate::transfer::CHUNK_BYTES;

const MESSAGE_BYTES_MAX: usize = CHUNK_BYTES + (64 << 10);
/// The largest answer is a page of seals: one of them may have thousands of ranks.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Serves until the shutdown.
pub(crate) fn serve(context: &Arc<Context>, listeners: Vec<TcpListener>) {
    let service = PeerServiceServer::new(PeerServiceHandler::new(Arc::clone(context)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    let grpc = Routes::new(service).add_service(health).into_axum_router();
    let router = http::router(Arc::clone(context)).merge(grpc);
    context.tasks.spawn(async move { reporter.set_serving::<PeerServiceServer<PeerServiceHandler>>().await });
    for listener in listeners {
        let (router, shutdown) = (router.clone(), context.shutdown.clone());
        context.tasks.spawn(async move {
            // Graceful, so that no connection outlives the agent; followed logs end with the same token.
            let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
            if let Err(err) = server.await {
                tracing::error!(error = %err, "the agent's port is not served any more");
            }
        });
    }
}
