//! The watchdog over the log's disk: one that does not answer, or is nearly full, costs the leader its leadership.
//!
//! openraft's core waits for each of its writes. So a leader that writes to a hung disk sends no heartbeats either, and the
//! others elect another. One that has nothing to write would lead on until the next command: therefore the writer
//! touches its disk when it is idle too, each operation is timed by a [`Pulse`], and a leader whose operation does not end
//! stops its heartbeats and calls itself leader no more (see `Leadership`).
//!
//! ```text
//!             an operation runs longer than `Timers::disk_hung_after_ms`
//!     fit ────────────────────────────────────────────────────────────────► hangs: no heartbeats, no leadership
//!     ▲ ▲                                                                      │   (a sole voter: said, nothing else;
//!     │ └──────────────────────── it has ended ◄───────────────────────────────┘    nobody could take over)
//!     │       the leader is short of room, a voter said that it is not
//!     └──◄──────────────────────────────────────────────────────────────────► gives way: the same, for one election
//! ```
//! A leader without room takes no commands, and by itself would lead on for ever: the followers' answers say whether one of
//! them has room. Who is elected is not chosen; where it is another one without room, that one gives way too. Where
//! nobody took over in time it leads on, and tries again a minute later.
//!
//! The process stays: threads that wait for a disk cannot be ended, and when the disk answers this member follows. Its
//! log is as good as before, since nothing was acknowledged that is not on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::ServerState;
use outlast_types::{BootTime, Millis, Timers};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::clock::boot_now;
use crate::folder::DiskRoom;
use crate::leadership::{Fitness, others_vote};
use crate::net::Peers;
use crate::types::Raft;

/// A small part of the shortest bound.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What a voter said of its room counts for so long: many heartbeats, and more than one look at a disk.
const ROOM_SAID_MAX_MS: Millis = 2_000;
/// Between two tries: each costs the cluster an election.
const GIVE_WAY_REST_MS: Millis = 60_000;

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

pub(crate) struct Watchdog {
    pulse: Arc<Pulse>,
    room: Arc<RwLock<DiskRoom>>,
    peers: Peers,
    raft: Raft,
    hung_after_ms: Millis,
    give_way: GiveWay,
    fitness: watch::Sender<Fitness>,
}

impl Watchdog {
    pub(crate) fn new(
        pulse: Arc<Pulse>,
        room: Arc<RwLock<DiskRoom>>,
        peers: Peers,
        raft: Raft,
        timers: &Timers,
        fitness: watch::Sender<Fitness>,
    ) -> Self {
        // Longer, and a try that fails would cost leases: they are made to bear a gap of this length.
        let give_way = GiveWay::new(timers.worst_leader_gap_ms);
        Self { pulse, room, peers, raft, hung_after_ms: timers.disk_hung_after_ms(), give_way, fitness }
    }

    /// Until nobody wants to know any more.
    pub(crate) async fn run(mut self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.fitness.is_closed() {
            every.tick().await;
            let fitness = self.look();
            let before = *self.fitness.borrow();
            if fitness != before {
                self.raft.runtime_config().heartbeat(fitness == Fitness::Fit);
                self.tell(before, fitness);
                self.fitness.send_replace(fitness);
            }
        }
    }

    fn look(&mut self) -> Fitness {
        if self.pulse.busy_ms() > self.hung_after_ms {
            return Fitness::DiskHangs;
        }
        let is_short = self.room.read().is_short();
        let (leads, has_heir) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let leads = metrics.state == ServerState::Leader;
            let voters = || metrics.membership_config.membership().voter_ids().collect();
            (leads, is_short && leads && self.peers.any_has_room(&voters(), ROOM_SAID_MAX_MS))
        };
        let gives_way = self.give_way.look(boot_now(), leads && is_short, has_heir);
        if gives_way { Fitness::GivesWay } else { Fitness::Fit }
    }

    fn tell(&self, before: Fitness, now: Fitness) {
        let busy_ms = self.pulse.busy_ms();
        let DiskRoom { free_bytes, needed_bytes } = *self.room.read();
        match (before, now) {
            (_, Fitness::DiskHangs) if others_vote(&self.raft.metrics().borrow()) => tracing::error!(
                busy_ms,
                "the disk under the data folder does not answer: this coordinator does not lead until it does; look at \
                 the disk, or stop this coordinator"
            ),
            (_, Fitness::DiskHangs) => tracing::error!(
                busy_ms,
                "the disk under the data folder does not answer, and there is no other coordinator that could take over: \
                 nothing can be changed until it does; look at the disk"
            ),
            (_, Fitness::GivesWay) => tracing::error!(
                free_bytes,
                needed_bytes,
                "the disk under the data folder is nearly full and another coordinator has room: this one gives the \
                 leadership up; make room"
            ),
            (Fitness::DiskHangs, Fitness::Fit) => {
                tracing::warn!("the disk under the data folder answers again")
            }
            (Fitness::GivesWay, Fitness::Fit)
                if self.raft.metrics().borrow().state == ServerState::Leader =>
            {
                tracing::warn!(
                    "nobody took the leadership over: this coordinator leads on, without room for commands"
                );
            }
            (Fitness::GivesWay | Fitness::Fit, Fitness::Fit) => {}
        }
    }
}

/// When a leader without room lets somebody else lead.
#[derive(Debug)]
struct GiveWay {
    /// How long a successor has.
    heir_within_ms: Millis,
    until: Option<BootTime>,
    not_before: BootTime,
}

impl GiveWay {
    fn new(heir_within_ms: Millis) -> Self {
        Self { heir_within_ms, until: None, not_before: BootTime(0) }
    }

    /// Whether to give way now. `leads_short`: this one leads, without room.
    fn look(&mut self, now: BootTime, leads_short: bool, has_heir: bool) -> bool {
        if leads_short && has_heir && self.until.is_none() && now >= self.not_before {
            let until = now.plus(self.heir_within_ms);
            self.not_before = until.plus(GIVE_WAY_REST_MS);
            self.until = Some(until);
        }
        // Silent, it hears nothing of any heir: begun is begun.
        self.until = self.until.filter(|until| leads_short && now < *until);
        self.until.is_some()
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

    #[test]
    fn a_leader_without_room_gives_way_to_one_with_room_for_a_while_and_not_again_at_once() {
        let mut give_way = GiveWay::new(2_000);
        let at = |ms: u64| BootTime(1_000_000 + ms);
        assert!(!give_way.look(at(0), true, false), "nobody has room");
        assert!(!give_way.look(at(100), false, true), "it follows, or has room");
        assert!(give_way.look(at(200), true, true));
        assert!(give_way.look(at(2_100), true, false), "it hears of nobody meanwhile");
        assert!(!give_way.look(at(2_200), true, true), "nobody took over: it leads on");
        assert!(!give_way.look(at(62_100), true, true));
        assert!(give_way.look(at(62_200), true, true), "a minute later");
        assert!(!give_way.look(at(62_300), false, true), "somebody took over");
        assert!(!give_way.look(at(62_400), true, true), "elected again, it rests first");
    }
}
