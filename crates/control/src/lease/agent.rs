//! The agent's side of a lease: how long it may believe that its work is still its own.

use std::collections::VecDeque;

use outlast_types::{BootTime, Millis, Timers};

/// Heartbeats whose answer is awaited. At one a heartbeat interval they span several leases; an older one could not
/// extend anything any more.
const SENT_MAX: usize = 64;

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantVerdict {
    Extended,
    /// It names a heartbeat that was answered before, or that is too long ago.
    Unknown,
    /// From a leader that has been succeeded.
    OldIncarnation,
    /// The fence failed under this registration: nothing extends it any more.
    Closed,
}

/// A heartbeat that was not answered in time: send the next one to a second coordinator too (A8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// The oldest unanswered heartbeat.
    pub seq: u64,
    pub silent_ms: Millis,
}

/// The lease of one registration. A new registration makes a new one.
#[derive(Clone, Debug)]
pub struct AgentLease {
    timers: Timers,
    /// Heartbeats without an answer, oldest first: number and the time before it was sent.
    sent: VecDeque<(u64, BootTime)>,
    incarnation: u64,
    deadline: Option<BootTime>,
    closed: bool,
}

impl AgentLease {
    pub fn new(timers: Timers) -> Self {
        Self { timers, sent: VecDeque::new(), incarnation: 0, deadline: None, closed: false }
    }

    /// A1: `now` is read *before* the heartbeat leaves.
    pub fn sent(&mut self, seq: u64, now: BootTime) {
        if self.sent.back().is_some_and(|(newest, _)| *newest >= seq) {
            return;
        }
        self.sent.push_back((seq, now));
        if self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
    }

    /// A1, A9: the leader confirmed heartbeat `seq`; the lease counts from that one's send time.
    pub fn granted(&mut self, seq: u64, lease_ms: Millis, incarnation: u64) -> GrantVerdict {
        if self.closed {
            return GrantVerdict::Closed;
        }
        if incarnation < self.incarnation {
            return GrantVerdict::OldIncarnation;
        }
        self.incarnation = incarnation;
        let Some(sent_at) = self.sent.iter().find(|(sent, _)| *sent == seq).map(|(_, at)| *at) else {
            return GrantVerdict::Unknown;
        };
        self.sent.retain(|(sent, _)| *sent > seq);
        self.deadline = self.deadline.max(Some(sent_at.plus(lease_ms)));
        GrantVerdict::Extended
    }

    /// `None` before the first grant.
    pub fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// A2: enough lease is left to start a worker and, if it must, to stop it again.
    pub fn may_start(&self, now: BootTime) -> bool {
        let needed = self.timers.kill_budget_ms + self.timers.slack_ms;
        !self.closed && self.deadline.is_some_and(|deadline| deadline.since(now) > needed)
    }

    /// A3: when the keepers of `exclusive` workers begin to stop them, so that nothing is left at the deadline.
    pub fn fence_at(&self) -> Option<BootTime> {
        self.deadline.map(|deadline| deadline.minus(self.timers.kill_budget_ms))
    }

    pub fn fence_due(&self, now: BootTime) -> bool {
        self.fence_at().is_some_and(|at| now >= at)
    }

    pub fn expired(&self, now: BootTime) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// A3: something `exclusive` outlived the deadline. This registration is never renewed again.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// A8: a heartbeat has gone unanswered for longer than H.
    pub fn unanswered(&self, now: BootTime) -> Option<Hedge> {
        let (seq, at) = *self.sent.front()?;
        let silent_ms = now.since(at);
        (silent_ms > self.timers.heartbeat_ms).then_some(Hedge { seq, silent_ms })
    }
}

#[cfg(test)]
mod tests {
    use outlast_types::Profile;

    use super::*;

    const D: u64 = 4_000;

    fn lease() -> AgentLease {
        AgentLease::new(Timers::of(Profile::Lan))
    }

    #[test]
    fn a1_the_lease_counts_from_before_the_send_and_never_goes_back() {
        let mut lease = lease();
        lease.sent(1, BootTime(1_000));
        lease.sent(2, BootTime(1_500));
        assert_eq!(lease.granted(2, D, 7), GrantVerdict::Extended);
        assert_eq!(lease.deadline(), Some(BootTime(5_500)));
        assert_eq!(lease.granted(1, D, 7), GrantVerdict::Unknown, "an older answer that comes late");
        assert_eq!(lease.granted(2, D, 7), GrantVerdict::Unknown, "the same answer again");
        assert_eq!(lease.granted(9, D, 7), GrantVerdict::Unknown, "never sent");
        assert_eq!(lease.deadline(), Some(BootTime(5_500)));
    }

    #[test]
    fn a1_a_succeeded_leader_grants_nothing() {
        let mut lease = lease();
        lease.sent(1, BootTime(0));
        lease.sent(2, BootTime(500));
        assert_eq!(lease.granted(1, D, 8), GrantVerdict::Extended);
        assert_eq!(lease.granted(2, D, 7), GrantVerdict::OldIncarnation);
        assert_eq!(lease.deadline(), Some(BootTime(D)));
    }

    #[test]
    fn a2_a3_starting_stops_before_fencing_begins_and_fencing_before_the_deadline() {
        let mut lease = lease();
        assert!(
            !lease.may_start(BootTime(0)) && !lease.fence_due(BootTime(0)) && !lease.expired(BootTime(0))
        );
        lease.sent(1, BootTime(0));
        lease.granted(1, D, 1);
        assert!(lease.may_start(BootTime(3_199)) && !lease.may_start(BootTime(3_200)));
        assert!(!lease.fence_due(BootTime(3_499)) && lease.fence_due(BootTime(3_500)));
        assert!(!lease.expired(BootTime(3_999)) && lease.expired(BootTime(4_000)));
    }

    #[test]
    fn a3_a_failed_fence_closes_the_registration_for_good() {
        let mut lease = lease();
        lease.sent(1, BootTime(0));
        lease.close();
        assert_eq!(lease.granted(1, D, 1), GrantVerdict::Closed);
        assert!(!lease.may_start(BootTime(0)));
    }

    #[test]
    fn a8_an_unanswered_heartbeat_is_hedged_after_one_interval_and_memory_stays_bounded() {
        let mut lease = lease();
        lease.sent(1, BootTime(0));
        assert_eq!(lease.unanswered(BootTime(500)), None);
        assert_eq!(lease.unanswered(BootTime(501)), Some(Hedge { seq: 1, silent_ms: 501 }));
        for seq in 2..1_000 {
            lease.sent(seq, BootTime(seq * 500));
        }
        assert_eq!(lease.sent.len(), SENT_MAX);
    }
}
