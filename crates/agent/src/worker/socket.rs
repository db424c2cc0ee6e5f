//! The worker's socket: one per worker, private to its user, at the same place after a restart of the agent.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use outlast_proto::worker::v1::worker_service_server::WorkerServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::api::WorkerServiceHandler;
use super::handle::WorkerHandle;
use crate::context::Context;

/// Calls of one worker at a time: a few for each of its threads.
const CALLS_MAX: usize = 64;

/// Serves until the handle is cancelled.
///
/// # Errors
/// When the socket cannot be bound.
pub(crate) fn serve_socket(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    path: &Path,
) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let service = WorkerServiceHandler::new(Arc::clone(context), Arc::clone(handle));
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_MAX)
        .add_service(WorkerServiceServer::new(service));
    let (cancel, key) = (handle.cancel.clone(), handle.key);
    context.tasks.spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        // Graceful, so that no connection outlives the agent; the calls that last end with the same token.
        if let Err(err) = server.serve_with_incoming_shutdown(incoming, cancel.cancelled_owned()).await {
            tracing::error!(attempt = %key.attempt, rank = key.rank, error = %err, "the worker's socket is not served any more");
        }
    });
    Ok(())
}
