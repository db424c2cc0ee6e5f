//! The clients: they ask single coordinators, with deadlines of their own and no hidden retries, so that the history has
//! what each coordinator really answered.

mod asker;
mod board;
mod jobs;
mod read;
mod status;
mod submit;
mod watch;

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;

use crate::bed::Bed;
use crate::history::Recorder;

pub(crate) use asker::Asker;
pub(crate) use board::Board;
pub(crate) use jobs::{EXCLUSIVE, JobMaker, SERVICE};
pub(crate) use submit::Submitter;

const READERS: usize = 2;
const WATCHERS: usize = 2;

/// Everybody who asks, until told to stop.
pub(crate) struct Clients {
    tasks: JoinSet<()>,
    stop: signal::Sender<bool>,
    watchers: JoinSet<()>,
    stop_watching: signal::Sender<bool>,
}

impl Clients {
    /// # Errors
    /// When a coordinator's address is none.
    pub(crate) fn start(
        bed: &Arc<Bed>,
        recorder: &Recorder,
        board: &Arc<Board>,
        maker: &JobMaker,
        seed: u64,
    ) -> Result<Self> {
        let (stop, stopped) = signal::channel(false);
        let (stop_watching, watching) = signal::channel(false);
        let (mut tasks, mut watchers) = (JoinSet::new(), JoinSet::new());
        let asker = |name: &str| Asker::new(name, bed, recorder, seed);
        let submitter = Submitter::new(asker("submitter")?, Arc::clone(board), maker.clone());
        tasks.spawn(submitter.run(stopped.clone()));
        tasks.spawn(submit::cancel(asker("canceller")?, Arc::clone(board), stopped.clone()));
        for i in 0..READERS {
            tasks.spawn(read::run(asker(&format!("reader{i}"))?, Arc::clone(board), stopped.clone()));
        }
        for i in 0..WATCHERS {
            watchers.spawn(watch::run(asker(&format!("watcher{i}"))?, watching.clone()));
        }
        watchers.spawn(status::run(asker("status")?, watching));
        Ok(Self { tasks, stop, watchers, stop_watching })
    }

    /// No new jobs and no reads; what was asked for is answered or times out.
    pub(crate) async fn stop_asking(&mut self) {
        // An error means that all have ended.
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }

    pub(crate) async fn stop_watching(&mut self) {
        let _ = self.stop_watching.send(true);
        while self.watchers.join_next().await.is_some() {}
    }
}
