//! Heartbeats and the lease that they earn: the pure lease of `control`, with the numbers of what was sent.

use std::collections::VecDeque;

use outlast_control::lease::{AgentLease, GrantVerdict};
use outlast_types::{BootTime, Millis, Pace, Profile, Timers};

/// Send times kept to measure round trips; an answer that is later than this many heartbeats is not measured.
const SENT_KEPT: usize = 64;
/// Beats with news (a receipt: a seal waits for it) between the regular ones: a few at once, then so far apart that many
/// receipts are one message.
const NEWS_EVERY_MS: Millis = 5;
const NEWS_BURST: u32 = 4;

#[derive(Debug)]
pub(crate) struct Heart {
    lease: AgentLease,
    timers: Timers,
    next_seq: u64,
    sent: VecDeque<(u64, BootTime)>,
    last_sent: Option<BootTime>,
    news: Pace,
    /// The newest index of a change to this node's assignments that a grant named.
    assignments_index: u64,
}

impl Heart {
    /// Of a new registration: no lease yet.
    pub(crate) fn new(profile: Profile) -> Self {
        let timers = Timers::of(profile);
        Self {
            lease: AgentLease::new(timers),
            timers,
            next_seq: 1,
            sent: VecDeque::new(),
            last_sent: None,
            news: Pace::new(NEWS_EVERY_MS, NEWS_BURST),
            assignments_index: 0,
        }
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }
    pub(crate) fn assignments_index(&self) -> u64 {
        self.assignments_index
    }

    pub(crate) fn is_due(&self, now: BootTime) -> bool {
        self.last_sent.is_none_or(|last| now.since(last) >= self.timers.heartbeat_ms)
    }

    /// Whether news may go before the next regular beat.
    pub(crate) fn may_send_extra(&self, now: BootTime) -> bool {
        self.extra_in(now) == 0
    }

    /// How long until news may go.
    pub(crate) fn extra_in(&self, now: BootTime) -> Millis {
        self.news.wait_ms(now)
    }

    /// To be called before the heartbeat leaves: the lease counts from here (A1). Returns its number.
    pub(crate) fn send(&mut self, now: BootTime) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.lease.sent(seq, now);
        self.last_sent = Some(now);
        self.news.take(now);
        self.sent.push_back((seq, now));
        if self.sent.len() > SENT_KEPT {
            self.sent.pop_front();
        }
        seq
    }

    /// Returns the round trip of the heartbeat, where it is known.
    pub(crate) fn granted(
        &mut self,
        seq: u64,
        lease_ms: Millis,
        incarnation: u64,
        assignments_index: u64,
        now: BootTime,
    ) -> Option<Millis> {
        if self.lease.granted(seq, lease_ms, incarnation) == GrantVerdict::OldIncarnation {
            return None;
        }
        self.assignments_index = self.assignments_index.max(assignments_index);
        let sent_at = self.sent.iter().find(|(sent, _)| *sent == seq).map(|(_, at)| *at);
        self.sent.retain(|(sent, _)| *sent > seq);
        sent_at.map(|at| now.since(at))
    }

    pub(crate) fn deadline(&self) -> Option<BootTime> {
        self.lease.deadline()
    }
    pub(crate) fn may_start(&self, now: BootTime) -> bool {
        self.lease.may_start(now)
    }
    /// Exclusive workers must be killed now. A registration that never had a lease started none; those that it adopted
    /// have the deadline that their keepers know.
    pub(crate) fn fence_due(&self, now: BootTime) -> bool {
        self.lease.fence_due(now)
    }
    pub(crate) fn expired(&self, now: BootTime) -> bool {
        self.lease.expired(now)
    }
    /// A3: something exclusive outlived the deadline. Nothing is sent under this registration any more.
    pub(crate) fn close(&mut self) {
        self.lease.close();
    }
    pub(crate) fn is_closed(&self) -> bool {
        self.lease.is_closed()
    }
    /// The oldest unanswered heartbeat has waited for longer than an interval (A8).
    pub(crate) fn is_unanswered(&self, now: BootTime) -> bool {
        self.lease.unanswered(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_goes_at_once_after_a_pause_and_much_of_it_is_spaced() {
        let mut heart = Heart::new(Profile::default());
        let mut now = BootTime(1_000);
        for _ in 0..NEWS_BURST {
            assert!(heart.may_send_extra(now) && heart.extra_in(now) == 0);
            heart.send(now);
        }
        assert!(!heart.may_send_extra(now));
        assert_eq!(heart.extra_in(now), NEWS_EVERY_MS);
        now = now.plus(NEWS_EVERY_MS);
        assert!(heart.may_send_extra(now) && heart.extra_in(now) == 0);
        assert!(!heart.is_due(now), "the regular beat has its own time");
    }
}
