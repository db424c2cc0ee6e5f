//! Many commands in one log entry.
//!
//! ```text
//! propose ──permits?──no──► Busy
//!    │yes
//!    ▼ queue ──► batcher ──► client_write(batch)   at most two in flight
//!                 flush when nothing is in flight; or at 1024 commands, 512 KiB, or after 2 ms
//! ```
//! Permits are taken before openraft sees anything, because its own queues have no bounds. One proposal costs one fsync
//! on a quorum; while it is in flight the next batch gathers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::error::{ClientWriteError, RaftError};
use outlast_control::state::{Envelope, Response, encode_batch};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::config::Limits;
use crate::error::ProposeError;
use crate::leadership::Leadership;
use crate::types::{Batch, Raft};

/// One command; far below what one message may carry.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
const BATCH_COMMANDS_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 512 << 10;
const IN_FLIGHT_MAX: usize = 2;
const LINGER: Duration = Duration::from_millis(2);
/// What a refused proposer should wait: some fsyncs.
const RETRY_AFTER_MS: u64 = 50;
const BYTES_PER_PERMIT: usize = 1 << 10;

/// An answered command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The log index of the entry; commands of one batch share it.
    pub index: u64,
    pub response: Response,
}

type Outcome = Result<Applied, ProposeError>;

struct Pending {
    envelope: Envelope,
    bytes: usize,
    answer: oneshot::Sender<Outcome>,
    /// Given back when the answer is.
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Proposals that began and that committed, counted: a commit of one that began later proves leadership.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    begun: AtomicU64,
    /// (number, log index) of the newest one that committed.
    pub(crate) committed: watch::Sender<(u64, u64)>,
}

impl Rounds {
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }
    fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }
    fn commit(&self, number: u64, index: u64) {
        self.committed.send_if_modified(|newest| {
            let newer = number > newest.0;
            if newer {
                *newest = (number, index);
            }
            newer
        });
    }
}

#[derive(Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Pending>,
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    deadline: Duration,
}

impl Batcher {
    /// Must be called within the runtime that it shall run on.
    pub(crate) fn spawn(
        raft: Raft,
        limits: &Limits,
        leadership: watch::Receiver<Leadership>,
        rounds: Arc<Rounds>,
    ) -> Self {
        // Never full: whoever sends holds one of as many permits.
        let (queue, pending) = mpsc::channel(limits.commands_in_flight);
        let service = Service { raft, leadership, rounds, waiting: VecDeque::new(), bytes: 0 };
        tokio::spawn(service.run(pending));
        Self {
            queue,
            commands: Arc::new(Semaphore::new(limits.commands_in_flight)),
            bytes: Arc::new(Semaphore::new(limits.bytes_in_flight / BYTES_PER_PERMIT)),
            deadline: limits.propose_deadline,
        }
    }

    pub(crate) async fn propose(&self, envelope: Envelope) -> Outcome {
        let bytes = encode_batch(std::slice::from_ref(&envelope)).len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { size: bytes, max: COMMAND_BYTES_MAX });
        }
        let busy = |err| match err {
            TryAcquireError::NoPermits => ProposeError::Busy { retry_after_ms: RETRY_AFTER_MS },
            TryAcquireError::Closed => ProposeError::Stopped,
        };
        let one = Arc::clone(&self.commands).try_acquire_owned().map_err(busy)?;
        let kib = bytes.div_ceil(BYTES_PER_PERMIT) as u32;
        let many = Arc::clone(&self.bytes).try_acquire_many_owned(kib).map_err(busy)?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending { envelope, bytes, answer, _permits: (one, many) };
        self.queue.send(pending).await.map_err(|_| ProposeError::Stopped)?;
        match tokio::time::timeout(self.deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            // The task ended while the command may have been in flight.
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }
}

struct Service {
    raft: Raft,
    leadership: watch::Receiver<Leadership>,
    rounds: Arc<Rounds>,
    waiting: VecDeque<Pending>,
    bytes: usize,
}

impl Service {
    async fn run(mut self, mut queue: mpsc::Receiver<Pending>) {
        let mut in_flight: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut linger_until = Instant::now();
        loop {
            let full = self.waiting.len() >= BATCH_COMMANDS_MAX || self.bytes >= BATCH_BYTES_MAX;
            let waited = !self.waiting.is_empty() && Instant::now() >= linger_until;
            let room = in_flight.len() < IN_FLIGHT_MAX;
            if !self.waiting.is_empty() && (in_flight.is_empty() || (room && (full || waited))) {
                let batch = self.take_batch();
                in_flight.extend(self.flush(batch));
                continue;
            }
            tokio::select! {
                biased;
                Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
                pending = queue.recv(), if !full => match pending {
                    Some(pending) => {
                        if self.waiting.is_empty() {
                            linger_until = Instant::now() + LINGER;
                        }
                        self.bytes += pending.bytes;
                        self.waiting.push_back(pending);
                        self.gather(&mut queue);
                    }
                    // All handles are gone, and with them everybody who waits.
                    None => return,
                },
                () = tokio::time::sleep_until(linger_until), if room && !self.waiting.is_empty() => {}
            }
        }
    }

    /// Takes what is there already, so that a burst becomes one batch.
    fn gather(&mut self, queue: &mut mpsc::Receiver<Pending>) {
        while self.waiting.len() < BATCH_COMMANDS_MAX
            && self.bytes < BATCH_BYTES_MAX
            && let Ok(pending) = queue.try_recv()
        {
            self.bytes += pending.bytes;
            self.waiting.push_back(pending);
        }
    }

    /// Who gave up waiting while still in the queue is left out: nothing of it was sent.
    fn take_batch(&mut self) -> Vec<Pending> {
        self.bytes = 0;
        self.waiting.drain(..).filter(|pending| !pending.answer.is_closed()).collect()
    }

    fn flush(&mut self, batch: Vec<Pending>) -> Option<BoxFuture<'static, ()>> {
        let leadership = self.leadership.borrow_and_update().clone();
        if !leadership.is_self {
            for pending in batch {
                // Whoever left does not need the answer.
                let _ =
                    pending.answer.send(Err(ProposeError::NotLeader { leader: leadership.leader.clone() }));
            }
            return None;
        }
        if batch.is_empty() {
            return None;
        }
        let (raft, rounds, watch) = (self.raft.clone(), Arc::clone(&self.rounds), self.leadership.clone());
        Some(Box::pin(write(raft, rounds, watch, leadership.term, batch)))
    }
}

/// Resolves when another term began or somebody else leads.
async fn deposed(mut leadership: watch::Receiver<Leadership>, term: u64) {
    // A closed channel means that the core has ended.
    let _ = leadership.wait_for(|now| !now.is_self || now.term != term).await;
}

async fn write(
    raft: Raft,
    rounds: Arc<Rounds>,
    leadership: watch::Receiver<Leadership>,
    term: u64,
    batch: Vec<Pending>,
) {
    let (envelopes, waiters): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|pending| (pending.envelope, (pending.answer, pending._permits))).unzip();
    let bytes = Bytes::from(encode_batch(&envelopes));
    drop(envelopes);
    let round = rounds.begin();
    let written = tokio::select! {
        written = raft.client_write(Batch(bytes)) => written,
        () = deposed(leadership, term) => {
            answer_all(waiters, &ProposeError::Unknown);
            return;
        }
    };
    match written {
        Ok(written) => {
            let index = written.log_id.index;
            rounds.commit(round, index);
            debug_assert_eq!(written.data.len(), waiters.len(), "one reply a command");
            for ((answer, permits), response) in waiters.into_iter().zip(written.data) {
                // Before the answer: who proposes again because of it must not find its own place still taken.
                drop(permits);
                // Whoever left does not need the answer.
                let _ = answer.send(Ok(Applied { index, response }));
            }
        }
        // Either it was never taken, or a new leader truncated it here while others may still have it: unknown.
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            answer_all(waiters, &ProposeError::Unknown)
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_))) => {
            answer_all(waiters, &ProposeError::Unknown);
        }
        Err(RaftError::Fatal(_)) => answer_all(waiters, &ProposeError::Unknown),
    }
}

fn answer_all(
    waiters: Vec<(oneshot::Sender<Outcome>, (OwnedSemaphorePermit, OwnedSemaphorePermit))>,
    err: &ProposeError,
) {
    for (answer, permits) in waiters {
        drop(permits);
        // Whoever left does not need the answer.
        let _ = answer.send(Err(err.clone()));
    }
}
