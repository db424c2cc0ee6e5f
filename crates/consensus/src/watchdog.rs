//! The watchdog over the log's disk: one that does not answer, instead of failing, costs the leader its leadership.
//!
//! openraft's core waits for each of its writes. So a leader that writes to a hung disk sends no heartbeats either, and the
//! others elect another. One that has nothing to write would lead on until the next command: therefore the writer
//! touches its disk when it is idle too, each operation is timed by a [`Pulse`], and a leader whose operation does not end
//! stops its heartbeats and calls itself leader no more (see `Leadership`).
//!
//! ```text
//!             an operation runs longer than `Timers::disk_hung_after_ms`
//!  answers ───────────────────────────────────────────────────────────────► hangs: no heartbeats, no leadership
//!     ▲                                                                        │   (a sole voter: said, nothing else;
//!     └────────────────────────── it has ended ◄───────────────────────────────┘    nobody could take over)
//! ```
//! The process stays: threads that wait for a disk cannot be ended, and when the disk answers this member follows. Its
//! log is as good as before, since nothing was acknowledged that is not on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outlast_types::{BootTime, Millis};
use tokio::sync::watch;

use crate::clock::boot_now;
use crate::leadership::others_vote;
use crate::types::Raft;

/// A small part of the shortest bound.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// When the writer's operation began that runs now, on the boot clock; zero while none does.
#[derive(Debug, Default)]
pub(crate) struct Pulse(AtomicU64);

impl Pulse {
    pub(crate) fn time<T>(&self, operation: impl FnOnce() -> T) -> T {
        self.0.store(boot_now().0.max(1), Ordering::Relaxed);
        let outcome = operation();
        self.0.store(0, Ordering::Relaxed);
        outcome
    }

    /// How long the present operation has been running.
    pub(crate) fn busy_ms(&self) -> Millis {
        match self.0.load(Ordering::Relaxed) {
            0 => 0,
            began => boot_now().since(BootTime(began)),
        }
    }
}

/// Looks at the pulse until nobody wants to know any more.
pub(crate) async fn watch_disk(
    pulse: Arc<Pulse>,
    hung_after_ms: Millis,
    raft: Raft,
    hangs: watch::Sender<bool>,
) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !hangs.is_closed() {
        every.tick().await;
        let busy_ms = pulse.busy_ms();
        let hangs_now = busy_ms > hung_after_ms;
        if hangs_now == *hangs.borrow() {
            continue;
        }
        let others_vote = others_vote(&raft.metrics().borrow());
        raft.runtime_config().heartbeat(!hangs_now);
        match (hangs_now, others_vote) {
            (true, true) => tracing::error!(
                busy_ms,
                "the disk under the data folder does not answer: this coordinator does not lead until it does; look at \
                 the disk, or stop this coordinator"
            ),
            (true, false) => tracing::error!(
                busy_ms,
                "the disk under the data folder does not answer, and there is no other coordinator that could take over: \
                 nothing can be changed until it does; look at the disk"
            ),
            (false, _) => tracing::warn!("the disk under the data folder answers again"),
        }
        hangs.send_replace(hangs_now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_operation_that_runs_is_busy() {
        let pulse = Pulse::default();
        assert_eq!(pulse.busy_ms(), 0);
        let seen = pulse.time(|| {
            std::thread::sleep(Duration::from_millis(20));
            pulse.busy_ms()
        });
        assert!(seen >= 10, "{seen}");
        assert_eq!(pulse.busy_ms(), 0);
    }
}
