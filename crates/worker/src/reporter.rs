//! Reports on a background task: one update under way at most, and one slot behind it in which the newest wins, so that
//! the training loop never waits for the agent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_proto::status::Failure;
use outlast_proto::worker::v1::{ReportRequest, ReportResponse};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use crate::link::{AWAY_MAX, Backoff, Client, is_passing, once};
use crate::wishes::Wishes;

/// A report is cheap for the agent; one that takes longer is repeated.
const REPORT_MAX: Duration = Duration::from_secs(5);

/// Shared by the training loop and the background tasks.
#[derive(Debug, Default)]
pub(crate) struct Board {
    wishes: Mutex<Wishes>,
    slot: Mutex<Slot>,
    settled: Condvar,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    next: Option<ReportRequest>,
    under_way: bool,
}

impl Board {
    pub(crate) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        // A panic in between cannot leave these plain fields half-written.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of an update that still waits.
    pub(crate) fn put(&self, update: ReportRequest) {
        self.slot().next = Some(update);
        self.filled.notify_one();
    }

    /// Waits until nothing is left to send; false when `limit` passed first.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let busy = |slot: &mut Slot| slot.next.is_some() || slot.under_way;
        let (slot, _) =
            self.settled.wait_timeout_while(self.slot(), limit, busy).unwrap_or_else(PoisonError::into_inner);
        slot.next.is_none() && !slot.under_way
    }

    fn take(&self) -> Option<ReportRequest> {
        let mut slot = self.slot();
        let update = slot.next.take();
        slot.under_way = update.is_some();
        if update.is_none() {
            self.settled.notify_all();
        }
        update
    }

    /// The newer of what was tried and what has come since.
    fn newest(&self, tried: ReportRequest) -> ReportRequest {
        self.slot().next.take().unwrap_or(tried)
    }
}

/// Sends updates until the attempt is over or the runtime ends.
pub(crate) async fn run(client: Client, board: Arc<Board>) {
    loop {
        while let Some(update) = board.take() {
            deliver(&client, &board, update).await;
        }
        board.filled.notified().await;
    }
}

/// Tries for at most `AWAY_MAX`, with the newest update at each try; then lets it go, since a newer one will come.
async fn deliver(client: &Client, board: &Board, mut update: ReportRequest) {
    let began = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        let step = update.step;
        let sent = update.clone();
        let mut client = client.clone();
        let answer = once(REPORT_MAX, async move { client.report(sent).await }).await;
        let Some(status) = settle(board, step, answer) else { return };
        if began.elapsed() >= AWAY_MAX {
            tracing::warn!(step, error = %status, "the agent is away; a report is dropped, training goes on");
            return;
        }
        backoff.pause(Duration::from_millis(Failure::from_status(&status).retry_after_ms())).await;
        update = board.newest(update);
    }
}

/// Notes what an answer says; gives back the status of a try that is worth another one.
fn settle(board: &Board, step: u64, answer: Result<ReportResponse, Status>) -> Option<Status> {
    match answer {
        Ok(ReportResponse { checkpoint_due, stop }) => {
            board.wishes().answered(step, checkpoint_due, stop);
            None
        }
        Err(status) if is_passing(&status) => Some(status),
        Err(status) => {
            match Failure::from_status(&status) {
                Failure::Fenced { reason } => board.wishes().fenced(reason),
                refused => {
                    tracing::warn!(step, reason = %refused, "the agent refuses a report, training goes on")
                }
            }
            None
        }
    }
}
