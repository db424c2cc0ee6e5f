//! Watches the cluster from outside, as an operator would: the events of all jobs and nodes, and the job's steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use outlast_client::Client;
use outlast_proto::control::v1::Event;
use outlast_types::WallTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::screen::Screen;
use crate::local::wall_now;

/// What has been seen so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Each event with the leader's wall clock: all processes share this machine's.
    pub(super) events: Vec<(WallTime, Event)>,
    /// Attempt number → node of each rank, of the newest look at the job.
    pub(super) attempt: u64,
    pub(super) running: bool,
    pub(super) nodes: Vec<String>,
    /// Rank 0's newest step, and when each attempt was first seen at each step.
    pub(super) step: u64,
    first_seen: BTreeMap<(u64, u64), WallTime>,
    pub(super) restore_step: u64,
    pub(super) sealed: u64,
    pub(super) sealed_step: u64,
    state: String,
}

impl Seen {
    pub(super) fn job_is_final(&self) -> bool {
        ["succeeded", "failed", "cancelled"].contains(&self.state.as_str())
    }

    /// The last step that the attempts up to this one were seen at.
    pub(super) fn last_step_until(&self, attempt: u64) -> u64 {
        self.first_seen.range(..(attempt + 1, 0)).map(|((_, step), _)| *step).max().unwrap_or(0)
    }

    /// When an attempt newer than this one was first seen at a step that no attempt up to it had made.
    pub(super) fn new_ground_after(&self, attempt: u64) -> Option<WallTime> {
        let old = self.last_step_until(attempt);
        self.first_seen
            .range((attempt + 1, 0)..)
            .filter(|((_, step), _)| *step > old)
            .map(|(_, at)| *at)
            .min()
    }

    /// When an event of this kind was first logged at or after `since`.
    pub(super) fn event_since(&self, since: WallTime, fits: impl Fn(&Event) -> bool) -> Option<WallTime> {
        self.events.iter().find(|(at, event)| *at >= since && fits(event)).map(|(at, _)| *at)
    }
}

/// Owns the two tasks that look; they end with it.
pub(super) struct Observer {
    seen: watch::Receiver<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

/// Between two looks at the job's steps.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Observer {
    pub(super) fn start(client: Client, job: &str, screen: Screen) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let sender = Arc::new(sender);
        let events = tokio::spawn(watch_events(client.clone(), Arc::clone(&sender), screen.clone()));
        let steps = tokio::spawn(watch_steps(client, job.to_owned(), sender, screen));
        Self { seen, tasks: vec![events, steps] }
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.borrow())
    }

    /// Waits until what was seen fits.
    ///
    /// # Errors
    /// After the deadline, or when the job ended while something else was waited for.
    pub(super) async fn wait(
        &self,
        what: &str,
        deadline: Duration,
        fits: impl Fn(&Seen) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < deadline {
            if self.read(&fits) {
                return Ok(());
            }
            if self.read(Seen::job_is_final) {
                bail!("the job ended before {what}: it {}", self.read(|seen| seen.state.clone()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("waited {} s in vain for {what}; last seen: {}", deadline.as_secs(), self.read(Seen::summary))
    }
}

impl Seen {
    fn summary(&self) -> String {
        let state = if self.running { "runs" } else { &self.state };
        format!(
            "attempt {} {state} on {}   step {}   sealed {} (step {})",
            self.attempt,
            self.nodes.join(", "),
            self.step,
            self.sealed,
            self.sealed_step
        )
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn watch_events(client: Client, seen: Arc<watch::Sender<Seen>>, screen: Screen) {
    let mut stream = client.watch_events("", 1);
    // An error means that no coordinator could be reached for long; the acts notice that themselves.
    while let Ok(batch) = stream.next().await {
        let at = batch.at.map(WallTime::from).unwrap_or_default();
        for event in &batch.events {
            if let Some(text) = worth_saying(event) {
                screen.say(&format!("  log: {text}"));
            }
        }
        seen.send_modify(|seen| {
            seen.sealed +=
                batch.events.iter().filter(|event| event.kind == "checkpoint_sealed").count() as u64;
            seen.events.extend(batch.events.into_iter().map(|event| (at, event)));
        });
    }
}

/// The life events; checkpoints come every second and would drown them.
fn worth_saying(event: &Event) -> Option<&str> {
    let kinds = [
        "leader_changed",
        "node_lost",
        "attempt_started",
        "attempt_running",
        "attempt_stopping",
        "job_changed",
    ];
    kinds.contains(&event.kind.as_str()).then_some(event.text.as_str())
}

async fn watch_steps(client: Client, job: String, seen: Arc<watch::Sender<Seen>>, screen: Screen) {
    loop {
        if let Ok(job) = client.get_job(&job).await {
            let now = wall_now();
            seen.send_modify(|seen| {
                seen.state.clone_from(&job.state);
                seen.sealed_step =
                    job.checkpoints.iter().filter(|c| c.state == "sealed").map(|c| c.step).max().unwrap_or(0);
                let Some(attempt) = job.groups.first().and_then(|group| group.attempts.last()) else {
                    return;
                };
                seen.attempt = attempt.number;
                seen.running = attempt.phase == "running";
                seen.restore_step = attempt.restore_step;
                seen.nodes = attempt.assignments.iter().map(|a| a.node.clone()).collect();
                if let Some(step) = attempt.assignments.first().map(|a| a.step).filter(|step| *step > 0) {
                    seen.step = step;
                    seen.first_seen.entry((attempt.number, step)).or_insert(now);
                }
            });
            let line = seen.borrow().summary();
            screen.progress(line);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
