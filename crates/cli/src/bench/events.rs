//! Everything that happens in the cluster, with the leader's wall clock, to be searched.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use outlast_client::Client;
use outlast_proto::control::v1::Event;
use outlast_types::WallTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) struct Events {
    seen: watch::Receiver<Vec<(WallTime, Event)>>,
    task: JoinHandle<()>,
}

/// A busy machine may take several times as long as usual.
const DEADLINE: Duration = Duration::from_secs(60);

impl Events {
    pub(super) fn watch(client: &Client) -> Self {
        let mut stream = client.watch_events("", 1);
        let (sender, seen) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            while let Ok(batch) = stream.next().await {
                let at = batch.at.map(WallTime::from).unwrap_or_default();
                sender.send_modify(|seen: &mut Vec<_>| {
                    seen.extend(batch.events.into_iter().map(|event| (at, event)))
                });
            }
        });
        Self { seen, task }
    }

    /// Waits for the first event at or after `since` that fits; answers its time.
    ///
    /// # Errors
    /// After a minute.
    pub(super) async fn wait(
        &self,
        what: &str,
        since: WallTime,
        fits: impl Fn(&Event) -> bool,
    ) -> Result<WallTime> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            let found =
                self.seen.borrow().iter().find(|(at, event)| *at >= since && fits(event)).map(|(at, _)| *at);
            if let Some(at) = found {
                return Ok(at);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("waited {} s in vain for {what}", DEADLINE.as_secs())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}
