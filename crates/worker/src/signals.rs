//! What the supervisor asks of its own accord: one stream from the agent, opened again whenever it breaks.

use std::sync::Arc;
use std::time::Duration;

use outlast_proto::status::Failure;
use outlast_proto::worker::v1::signal::Kind;
use outlast_proto::worker::v1::{RegisterRequest, Signal, SignalsRequest};
use tonic::{Code, Status};

use crate::link::{Backoff, Client, once};
use crate::reporter::Board;

/// Opening the stream and registering are answered from the agent's memory.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// Listens until the attempt is over or the runtime ends; the pauses in between are capped, their number is not,
/// because a worker may outlive its agent by any time.
pub(crate) async fn run(client: Client, board: Arc<Board>, me: RegisterRequest) {
    let mut backoff = Backoff::new();
    loop {
        let status = match listen(&client, &board).await {
            Ok(()) => {
                backoff = Backoff::new();
                Status::unavailable("the stream of signals ended")
            }
            Err(status) => status,
        };
        if is_over(&board, &status) {
            return;
        }
        tracing::debug!(error = %status, "the stream of signals broke, opening it again");
        backoff.pause(Duration::ZERO).await;
        // A restarted agent has to hear again who sits at this socket.
        let (mut again, who) = (client.clone(), me.clone());
        if let Err(status) = once(OPEN_MAX, async move { again.register(who).await }).await
            && is_over(&board, &status)
        {
            return;
        }
    }
}

async fn listen(client: &Client, board: &Board) -> Result<(), Status> {
    let mut client = client.clone();
    let mut stream = once(OPEN_MAX, async move { client.signals(SignalsRequest {}).await }).await?;
    while let Some(signal) = stream.message().await? {
        heed(board, &signal);
    }
    Ok(())
}

fn heed(board: &Board, signal: &Signal) {
    match signal.kind() {
        Kind::CheckpointNow => board.wishes().checkpoint_now(),
        Kind::Stop => board.wishes().stop(),
        // From a newer agent: what this SDK does not know it cannot do.
        Kind::Unspecified => tracing::debug!(kind = signal.kind, "a signal of unknown kind is ignored"),
    }
}

/// Whether there is no use in listening any longer.
fn is_over(board: &Board, status: &Status) -> bool {
    if let Failure::Fenced { reason } = Failure::from_status(status) {
        board.wishes().fenced(reason);
        return true;
    }
    status.code() == Code::Unimplemented
}
