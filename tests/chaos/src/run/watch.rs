//! The init system of the bed: whoever ends by itself is written down and started again.

use std::sync::Arc;
use std::time::Duration;

use outlast_local::Daemon;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bed::Bed;
use crate::history::{Recorder, What};

const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) struct Supervisor {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Supervisor {
    pub(crate) fn start(bed: &Arc<Bed>, recorder: &Recorder) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (bed, recorder) = (Arc::clone(bed), recorder.clone());
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                look(&bed, &recorder);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { task, stop }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(true);
        // An error would be a panic of the look above, which has told itself.
        let _ = self.task.await;
    }
}

fn look(bed: &Bed, recorder: &Recorder) {
    let mut cluster = bed.cluster();
    let cluster = &mut *cluster;
    for daemon in cluster.coordinators.iter_mut().chain(&mut cluster.agents) {
        // In this order: a fault claims before it kills, and both happen while the cluster is ours.
        if daemon.is_running() || bed.is_claimed(&daemon.name) {
            continue;
        }
        if daemon.pid().is_some() {
            let line = obituary(daemon);
            recorder.put(What::Log { daemon: daemon.name.clone(), line });
        }
        if let Err(err) = daemon.start() {
            recorder
                .put(What::Log { daemon: daemon.name.clone(), line: format!("it does not start: {err:#}") });
        }
    }
}

fn obituary(daemon: &mut Daemon) -> String {
    let how = match (daemon.exit_code(), daemon.exit_signal()) {
        (Some(code), _) => format!("with {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "somehow".to_owned(),
    };
    format!("it ended by itself {how}: {}", daemon.log_tail(4))
}
