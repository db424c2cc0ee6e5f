//! The worker as the training loop sees it: blocking calls in front of one background thread.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use outlast_proto::worker::v1::{
    ReadyRequest, RegisterRequest, RegisterResponse, ReportRequest, SaveCheckpointRequest,
    SaveCheckpointResponse, WaitCheckpointRequest, WaitCheckpointResponse,
};
use outlast_types::{AttemptId, Digest};
use tokio::runtime::Runtime;

use crate::error::{CallError, ConnectError, ReportError, SaveError, WaitError};
use crate::link::{self, Client, persist};
use crate::reporter::{self, Board};
use crate::signals;
use crate::staging::MappedSlots;
use crate::wishes::{Report, Saving};

/// Names the agent's socket; unset where nobody supervises.
pub const SOCKET_VARIABLE: &str = "OUTLAST_SOCKET";
/// As many as the agent takes, so that a heartbeat stays small; more named numbers a step belong into a file.
pub const METRICS_MAX: usize = 64;

/// Answered from the agent's memory.
pub(crate) const QUICK_MAX: Duration = Duration::from_secs(5);
/// One save, bytes and fsync included: 100 GiB at 200 MB/s take 9 minutes.
pub(crate) const SAVE_MAX: Duration = Duration::from_secs(1800);
/// One question whether a checkpoint is sealed; asked again until the caller's limit.
pub(crate) const WAIT_SLICE: Duration = Duration::from_secs(20);
/// What the last report may still take when the worker is dropped.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// A checkpoint's part that is in the agent's hands, durable on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The checkpoint's name, such as `ck7`.
    pub checkpoint: String,
    pub size_bytes: u64,
    /// BLAKE3 of this rank's part, as the agent packed it.
    pub root: Digest,
}

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealOutcome {
    /// It exists: a restart goes on from it, or from a newer one.
    Sealed,
    /// It will never exist.
    GivenUp { reason: String },
}

/// This process as one worker of an attempt. Cheap to share by reference between threads.
#[derive(Debug)]
pub struct Worker {
    identity: Identity,
    client: Client,
    board: Arc<Board>,
    staging: Mutex<MappedSlots>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Identity {
    job: String,
    job_name: String,
    attempt: AttemptId,
    rank: u32,
    world_size: u32,
    restore_dir: Option<PathBuf>,
    restore_step: u64,
    checkpoint_dir: PathBuf,
}

impl Worker {
    /// Connects to the agent that started this process. `None` when `OUTLAST_SOCKET` is unset or empty: nobody
    /// supervises. Waits up to 30 s for an agent that is being restarted.
    pub fn connect() -> Result<Option<Worker>, ConnectError> {
        match std::env::var_os(SOCKET_VARIABLE) {
            Some(socket) if !socket.is_empty() => Self::connect_to(Path::new(&socket)).map(Some),
            _ => Ok(None),
        }
    }

    /// Like [`Worker::connect`], with the socket named by the caller.
    pub fn connect_to(socket: &Path) -> Result<Worker, ConnectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("outlast-worker")
            .enable_all()
            .build()
            .map_err(ConnectError::Thread)?;
        let client = {
            let _inside = runtime.enter();
            link::open(socket)
        };
        let me = RegisterRequest {
            pid: std::process::id(),
            sdk: concat!("outlast-worker ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let registered = client.and_then(|client| Ok((register(&runtime, &client, &me)?, client)));
        let (identity, client) = match registered {
            Ok(registered) => registered,
            Err(err) => {
                runtime.shutdown_background();
                return Err(err);
            }
        };
        let board = Arc::new(Board::default());
        runtime.spawn(reporter::run(client.clone(), Arc::clone(&board)));
        runtime.spawn(signals::run(client.clone(), Arc::clone(&board), me));
        Ok(Worker { identity, client, board, staging: Mutex::default(), runtime: Some(runtime) })
    }

    /// This worker's place in its group, from 0.
    pub fn rank(&self) -> u32 {
        self.identity.rank
    }

    /// How many workers the group has.
    pub fn world_size(&self) -> u32 {
        self.identity.world_size
    }

    /// The attempt that this process belongs to; gangs put it into their handshake to turn zombies away.
    pub fn attempt(&self) -> AttemptId {
        self.identity.attempt
    }

    /// The job's id, such as `j12`.
    pub fn job(&self) -> &str {
        &self.identity.job
    }

    /// The job's name as its author gave it.
    pub fn job_name(&self) -> &str {
        &self.identity.job_name
    }

    /// The folder that this rank handed over in the checkpoint to go on from, verified; `None`: begin at step zero.
    pub fn restore_dir(&self) -> Option<&Path> {
        self.identity.restore_dir.as_deref()
    }

    /// The step of the checkpoint to go on from; 0 where there is none.
    pub fn restore_step(&self) -> u64 {
        self.identity.restore_step
    }

    /// A folder of this attempt's own in which to write what `save` hands over.
    pub fn checkpoint_dir(&self) -> &Path {
        &self.identity.checkpoint_dir
    }

    /// Tells the step that is done and its numbers, and what the supervisor is known to want. Never waits: the update
    /// goes out in the background, a newer one takes the place of one that still waits, and its answer is read at the
    /// next call. While the agent is away, reports are dropped; that is no error. The agent leaves out numbers that are
    /// not finite, and names of more than 128 bytes.
    pub fn report(&self, step: u64, metrics: &[(&str, f64)]) -> Result<Report, ReportError> {
        if metrics.len() > METRICS_MAX {
            return Err(ReportError::TooManyMetrics { count: metrics.len(), max: METRICS_MAX });
        }
        let known = self.wanted()?;
        let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        self.board.put(ReportRequest { step, metrics });
        Ok(known)
    }

    /// What the supervisor is known to want, without telling anything. For programs without steps.
    pub fn wanted(&self) -> Result<Report, ReportError> {
        self.board.wishes().report().map_err(|reason| ReportError::Fenced { reason })
    }

    /// Waits until the newest report is delivered or dropped; false when `limit` passed first.
    pub fn flush(&self, limit: Duration) -> bool {
        self.board.flush(limit)
    }

    /// Says that a service replica can serve now.
    pub fn ready(&self) -> Result<(), CallError> {
        let client = self.client.clone();
        let call = move || {
            let mut client = client.clone();
            async move { client.ready(ReadyRequest {}).await }
        };
        self.wait(persist(QUICK_MAX, call)).map(|_| ())
    }

    /// Hands the folder, or the one file, over as this rank's part of the checkpoint at `step`. Returns when every byte is
    /// durable on the agent's disk: it may change or go again. [`Worker::save_parts`] stops the training for less. The
    /// checkpoint exists only once all ranks' parts are sealed. All ranks of a group must save at the same steps. While
    /// earlier ones are still being written a step is skipped, by all ranks, unless the job's `checkpoint.on_busy` is
    /// `wait`.
    pub fn save(&self, step: u64, directory: &Path) -> Result<Saved, SaveError> {
        self.hand_over(SaveCheckpointRequest { step, directory: name_of(directory)?, in_turn: false })
    }

    /// Like `save`, but waits for earlier ones, whatever the job says: for the last one of a run.
    pub fn save_in_turn(&self, step: u64, directory: &Path) -> Result<Saved, SaveError> {
        self.hand_over(SaveCheckpointRequest { step, directory: name_of(directory)?, in_turn: true })
    }

    fn hand_over(&self, request: SaveCheckpointRequest) -> Result<Saved, SaveError> {
        let step = request.step;
        let client = self.client.clone();
        let call = move || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.save_checkpoint(request).await }
        };
        let saving = self.board.wishes().save_begins(step);
        let saved = self.wait(persist(SAVE_MAX, call)).map_err(SaveError::from);
        let saved = saved.and_then(|answer| saved_of(step, answer));
        self.note_failure(saving, saved.as_ref().err());
        saved
    }

    /// A skipped step has had its turn: the next one comes when it is due.
    pub(crate) fn note_failure(&self, saving: Saving, err: Option<&SaveError>) {
        if let Some(err) = err.filter(|err| !err.is_skipped()) {
            let mut wishes = self.board.wishes();
            wishes.save_failed(saving);
            if let SaveError::Call(CallError::Fenced { reason }) = err {
                wishes.fenced(reason.clone());
            }
        }
    }

    /// Waits until the checkpoint is sealed or given up, for at most `limit`. Training need not wait for this; the end
    /// of a program should.
    pub fn wait_sealed(&self, checkpoint: &str, limit: Duration) -> Result<SealOutcome, WaitError> {
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                let waited_s = began.elapsed().as_secs();
                return Err(WaitError::TimedOut { checkpoint: checkpoint.to_owned(), waited_s });
            }
            match self.ask_sealed(checkpoint, left)? {
                Some(WaitCheckpointResponse { sealed: true, .. }) => return Ok(SealOutcome::Sealed),
                Some(WaitCheckpointResponse { reason, .. }) => return Ok(SealOutcome::GivenUp { reason }),
                None => {}
            }
        }
    }

    /// One bounded question; `None`: not known yet.
    fn ask_sealed(
        &self,
        checkpoint: &str,
        left: Duration,
    ) -> Result<Option<WaitCheckpointResponse>, CallError> {
        let client = self.client.clone();
        let request = WaitCheckpointRequest { checkpoint: checkpoint.to_owned() };
        let call = move || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.wait_checkpoint(request).await }
        };
        self.wait(async move {
            match tokio::time::timeout(left.min(WAIT_SLICE), persist(WAIT_SLICE, call)).await {
                Ok(answer) => answer.map(Some),
                Err(_) => Ok(None),
            }
        })
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    pub(crate) fn staging(&self) -> MutexGuard<'_, MappedSlots> {
        // A mapping is kept only once it is whole.
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.runtime.as_ref().expect("taken only when the worker is dropped");
        block(runtime, call)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.board.flush(FAREWELL_MAX);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs `call` on the background thread and waits for it; works inside another runtime too.
fn block<T: Send + 'static>(runtime: &Runtime, call: impl Future<Output = T> + Send + 'static) -> T {
    let (answer, answered) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // The receiver waits below, so nobody can be gone.
        let _ = answer.send(call.await);
    });
    answered.recv().expect("the runtime outlives this call, and the call does not panic")
}

fn register(runtime: &Runtime, client: &Client, me: &RegisterRequest) -> Result<Identity, ConnectError> {
    let (client, me) = (client.clone(), me.clone());
    let call = move || {
        let (mut client, me) = (client.clone(), me.clone());
        async move { client.register(me).await }
    };
    let RegisterResponse {
        job,
        job_name,
        attempt,
        rank,
        world_size,
        restore_dir,
        restore_step,
        checkpoint_dir,
    } = block(runtime, persist(QUICK_MAX, call))?;
    let attempt = attempt.parse().map_err(|_| bad("attempt", &attempt))?;
    if rank >= world_size {
        return Err(bad("rank", &format!("{rank} of {world_size}")).into());
    }
    if checkpoint_dir.is_empty() {
        return Err(bad("checkpoint_dir", "").into());
    }
    let restore_dir = (!restore_dir.is_empty()).then(|| PathBuf::from(restore_dir));
    let checkpoint_dir = PathBuf::from(checkpoint_dir);
    Ok(Identity { job, job_name, attempt, rank, world_size, restore_dir, restore_step, checkpoint_dir })
}

pub(crate) fn bad(field: &'static str, value: &str) -> CallError {
    CallError::BadAnswer { field, value: value.to_owned() }
}

pub(crate) fn saved_of(step: u64, answer: SaveCheckpointResponse) -> Result<Saved, SaveError> {
    let SaveCheckpointResponse { checkpoint, size_bytes, root, skipped } = answer;
    if skipped {
        return Err(SaveError::Skipped { step });
    }
    let root = root.parse().map_err(|_| bad("root", &root))?;
    Ok(Saved { checkpoint, size_bytes, root })
}

/// The agent has a working directory of its own, so it needs the absolute path.
fn name_of(directory: &Path) -> Result<String, SaveError> {
    let absolute = std::path::absolute(directory)
        .map_err(|source| SaveError::Absolute { directory: directory.to_owned(), source })?;
    let name = absolute.to_str().ok_or_else(|| SaveError::Directory { directory: directory.to_owned() })?;
    Ok(name.to_owned())
}
