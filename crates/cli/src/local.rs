//! What the commands that run a whole cluster on this machine share (demo, bench).

use std::error::Error;
use std::time::SystemTime;

use anyhow::{Context, Result};
use outlast_types::WallTime;
use tokio::signal::unix::{SignalKind, signal};

use crate::problem::{Exit, Problem};

/// Runs a command's future on two threads: the cluster's processes do the work.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("the runtime could not be started")?.block_on(future)
}

/// Returns on Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("Ctrl-C cannot be listened for"),
        _ = term.recv() => Ok(()),
    }
}

pub(crate) fn problem(what: &str, error: &anyhow::Error) -> Problem {
    let error: &dyn Error = error.as_ref();
    Problem::new(Exit::Failed, what).because_of(error)
}

/// All processes of the cluster share this clock.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_millis() as u64)
}
