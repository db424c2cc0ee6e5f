//! What a predecessor of this agent left behind: running workers are adopted, ended ones reported (A6).

use std::io;
use std::path::Path;
use std::sync::Arc;

use outlast_process::{AdoptError, Adopted, Keeper, boot_now};
use outlast_types::BootId;

use crate::assigned::WorkerKey;
use crate::context::{Context, blocking};
use crate::worker::save::announce_and_copy;
use crate::worker::{Record, WorkerDir, WorkerHandle, serve_socket, worker_dirs};

pub(crate) struct Found {
    pub(crate) key: WorkerKey,
    pub(crate) handle: Arc<WorkerHandle>,
    pub(crate) outcome: Result<Adopted, AdoptError>,
}

/// Looks at every worker's folder; serves the sockets of those that run, and goes on with copies of their checkpoints.
pub(crate) async fn find_workers(context: &Arc<Context>) -> Vec<Found> {
    let (workers, boot) = (context.folder.workers(), context.boot.clone());
    let found = blocking(move || scan(&workers, &boot)).await;
    found.into_iter().map(|(dir, record, outcome)| take_up(context, dir, record, outcome)).collect()
}

fn scan(workers: &Path, boot: &BootId) -> Vec<(WorkerDir, Record, Result<Adopted, AdoptError>)> {
    let mut found = Vec::new();
    for dir in worker_dirs(workers).into_iter().filter(|dir| !dir.is_over()) {
        let Some(record) = dir.read_record() else {
            // Written before anything is started: without it nothing was.
            report(&dir, dir.clear());
            continue;
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

fn report(dir: &WorkerDir, done: io::Result<()>) {
    if let Err(err) = done {
        tracing::warn!(path = %dir.root().display(), error = %err, "an old worker's folder cannot be cleaned");
    }
}

fn take_up(
    context: &Arc<Context>,
    dir: WorkerDir,
    record: Record,
    outcome: Result<Adopted, AdoptError>,
) -> Found {
    let key = record.assigned.key;
    let handle =
        Arc::new(WorkerHandle::new(dir, record.assigned, boot_now(), context.shutdown.child_token()));
    let may_run = !matches!(outcome, Ok(Adopted::Ended(_) | Adopted::Gone));
    if may_run && let Err(err) = serve_socket(context, &handle, &record.socket) {
        tracing::error!(attempt = %key.attempt, rank = key.rank, error = %err, "an adopted worker's socket cannot be served");
    }
    for meta in context.shards.list() {
        if (meta.key.attempt, meta.key.rank) == (key.attempt, key.rank) && !meta.sealed {
            announce_and_copy(context, &handle, meta);
        }
    }
    Found { key, handle, outcome }
}
