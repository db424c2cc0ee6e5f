//! What a predecessor of this agent left behind: running workers are adopted, ended ones reported (A6).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast_process::{AdoptError, Adopted, Keeper, boot_now};
use outlast_types::BootId;

use crate::assigned::WorkerKey;
use crate::context::{Context, blocking};
use crate::transfer::chain;
use crate::worker::save::announce_and_copy;
use crate::worker::{Record, WorkerDir, WorkerHandle, resume, serve_socket, sweep_slots, worker_dirs};

/// For a worker whose record cannot be read: killed processes are gone in moments, unless they hang in the kernel.
const END_UNKNOWN_WITHIN_MS: u64 = 20_000;
const END_AGAIN_AFTER: Duration = Duration::from_millis(50);

pub(crate) struct Found {
    pub(crate) key: WorkerKey,
    pub(crate) handle: Arc<WorkerHandle>,
    pub(crate) outcome: Result<Adopted, AdoptError>,
    /// It runs, as far as is known, and has said that it can serve.
    pub(crate) is_ready: bool,
    /// Where its gang meets, of rank 0.
    pub(crate) rendezvous: Option<String>,
}

/// Looks at every worker's folder; serves the sockets of those that run, and goes on with copies of their checkpoints.
pub(crate) async fn find_workers(context: &Arc<Context>) -> Vec<Found> {
    let (workers, boot) = (context.folder.workers(), context.boot.clone());
    let found = blocking(move || scan(&workers, &boot)).await;
    if let Some(slots) = context.folder.slots().map(Path::to_owned) {
        let keep: Vec<_> = found.iter().map(|(_, record, _)| record.assigned.key.file_name()).collect();
        blocking(move || sweep_slots(&slots, &keep)).await;
    }
    let mut all = Vec::new();
    for (dir, record, outcome) in found {
        all.push(take_up(context, dir, record, outcome).await);
    }
    all
}

fn scan(workers: &Path, boot: &BootId) -> Vec<(WorkerDir, Record, Result<Adopted, AdoptError>)> {
    let mut found = Vec::new();
    for dir in worker_dirs(workers).into_iter().filter(|dir| !dir.is_over()) {
        let record = match dir.read_record() {
            Ok(Some(record)) => record,
            Ok(None) => {
                // Written before anything is started: without it nothing was.
                report(&dir, dir.clear());
                continue;
            }
            Err(err) => {
                tracing::error!(path = %dir.root().display(), error = %err, "an old worker's record cannot be read; whatever runs there is ended");
                report(&dir, end_unknown(&dir));
                continue;
            }
        };
        // Nothing survives a reboot, and how its workers ended nobody saw.
        if record.boot != *boot {
            report(&dir, dir.mark_over());
            continue;
        }
        match Keeper::adopt(&dir.keeper()) {
            // The predecessor died before it began.
            Err(AdoptError::NotAKeeper { .. }) => report(&dir, dir.mark_over()),
            outcome => found.push((dir, record, outcome)),
        }
    }
    found
}

/// Nobody can say what it is, so it will not be named at the registration and counts as gone: then it has to be.
fn end_unknown(dir: &WorkerDir) -> io::Result<()> {
    let until = boot_now().plus(END_UNKNOWN_WITHIN_MS);
    loop {
        match Keeper::adopt(&dir.keeper()) {
            Err(AdoptError::NotAKeeper { .. }) | Ok(Adopted::Ended(_) | Adopted::Gone) => {
                return dir.mark_over();
            }
            Ok(Adopted::Running(keeper)) => {
                let _ = keeper.stop(0);
            }
            Err(err) => tracing::warn!(path = %dir.root().display(), error = %chain(&err), "not ended yet"),
        }
        if boot_now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not end"));
        }
        std::thread::sleep(END_AGAIN_AFTER);
    }
}

fn report(dir: &WorkerDir, done: io::Result<()>) {
    if let Err(err) = done {
        tracing::warn!(path = %dir.root().display(), error = %err, "an old worker's folder cannot be cleaned");
    }
}

async fn take_up(
    context: &Arc<Context>,
    dir: WorkerDir,
    record: Record,
    outcome: Result<Adopted, AdoptError>,
) -> Found {
    let key = record.assigned.key;
    let cancel = context.shutdown.child_token();
    let handle =
        Arc::new(WorkerHandle::new(dir, context.folder.slots(), record.assigned, boot_now(), cancel));
    let may_run = !matches!(outcome, Ok(Adopted::Ended(_) | Adopted::Gone));
    // Before the socket is there: a worker that says "staged" is to be known as the one that the slot was handed to.
    resume::resume(context, &handle).await;
    if may_run && let Err(err) = serve_socket(context, &handle, &record.socket) {
        tracing::error!(attempt = %key.attempt, rank = key.rank, error = %err, "an adopted worker's socket cannot be served");
    }
    for meta in context.shards.list() {
        if (meta.key.attempt, meta.key.rank) == (key.attempt, key.rank) && !meta.sealed {
            announce_and_copy(context, &handle, meta);
        }
    }
    let is_ready = may_run && handle.dir.is_ready();
    let rendezvous = handle.dir.rendezvous().filter(|_| may_run);
    Found { key, handle, outcome, is_ready, rendezvous }
}
