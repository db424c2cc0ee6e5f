//! The connection to the agent: a Unix socket that goes away for a moment when the agent is restarted, so every call
//! has a deadline and is repeated for a bounded time.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use outlast_proto::status::Failure;
use outlast_proto::worker::v1::worker_service_client::WorkerServiceClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::error::{CallError, ConnectError};

pub(crate) type Client = WorkerServiceClient<Channel>;

/// An agent restarts and adopts its workers in a few seconds; one that is away for longer is broken.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(30);
/// The first pause between tries, doubled each time: a restart is noticed at once.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Connecting to a local socket takes microseconds, unless the agent is stopped.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Finds an agent that is stopped or hung while only the signal stream is open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Pauses between tries: doubling, capped.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(PAUSE_MIN)
    }

    /// Waits, for longer each time; `at_least` is what the other side asked for.
    pub(crate) async fn pause(&mut self, at_least: Duration) {
        sleep(self.0.max(at_least.min(PAUSE_MAX * 5))).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

/// Opens the channel; it connects at the first call, and again after each loss. Call inside the runtime.
pub(crate) fn open(socket: &Path) -> Result<Client, ConnectError> {
    let unusable = |reason: String| ConnectError::Socket { socket: socket.to_owned(), reason };
    let path = socket.to_str().ok_or_else(|| unusable("its path is not UTF-8".into()))?;
    let endpoint =
        Endpoint::from_shared(format!("unix://{path}")).map_err(|err| unusable(err.to_string()))?;
    let channel = endpoint
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy();
    Ok(WorkerServiceClient::new(channel))
}

/// One try, within `limit`.
pub(crate) async fn once<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// Whether the same call may succeed later: the agent said so, or the connection broke.
pub(crate) fn is_passing(status: &Status) -> bool {
    // A status with a source was made on this side, by the transport.
    std::error::Error::source(status).is_some() || may_pass(&Failure::from_status(status))
}

/// A bound that names no time to wait, such as the memory for a checkpoint, is one that waiting does not move.
fn may_pass(failure: &Failure) -> bool {
    let is_lasting = matches!(failure, Failure::Exhausted { retry_after_ms: 0, .. });
    failure.is_retryable() && !is_lasting
}

/// Calls until an answer that counts, for at most `AWAY_MAX` after the first try that got none.
pub(crate) async fn persist<T, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let began = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        let status = match once(limit, call()).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        if !is_passing(&status) {
            return Err(CallError::from_final(status));
        }
        let waited = began.elapsed();
        if waited >= AWAY_MAX {
            return Err(CallError::Unavailable { waited_s: waited.as_secs(), source: Box::new(status) });
        }
        tracing::debug!(error = %status, "no answer from the agent, trying again");
        backoff.pause(Duration::from_millis(Failure::from_status(&status).retry_after_ms())).await;
    }
}
