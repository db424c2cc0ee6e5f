//! Spacing of what may not come too often, but need not wait where it comes seldom.

use crate::time::{BootTime, Millis};

/// A few at once after a rest, then one in `every_ms`: the generic cell rate algorithm (ITU-T I.371).
#[derive(Clone, Debug)]
pub struct Pace {
    every_ms: Millis,
    /// So much earlier than its turn one may come.
    slack_ms: Millis,
    /// When the next one has its turn, were they spaced evenly.
    turn: BootTime,
}

impl Pace {
    /// `burst` may come at once; at least one.
    pub const fn new(every_ms: Millis, burst: u32) -> Self {
        let slack_ms = every_ms * burst.saturating_sub(1) as Millis;
        Self { every_ms, slack_ms, turn: BootTime(0) }
    }

    /// How long the next one has to wait. 0: it may come.
    pub fn wait_ms(&self, now: BootTime) -> Millis {
        self.turn.minus(self.slack_ms).since(now)
    }

    /// One came. Also where they come without waiting, more often than they should, the next one waits for one spacing at most.
    pub fn take(&mut self, now: BootTime) {
        self.turn = self.turn.max(now).min(now.plus(self.slack_ms)).plus(self.every_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_they_are_spaced() {
        let mut pace = Pace::new(10, 3);
        let mut came = Vec::new();
        let mut now = BootTime(1_000);
        while came.len() < 6 {
            now = now.plus(pace.wait_ms(now));
            pace.take(now);
            came.push(now.0);
        }
        assert_eq!(came, [1_000, 1_000, 1_000, 1_010, 1_020, 1_030]);
        assert_eq!(pace.wait_ms(now), 10);
        assert_eq!(pace.wait_ms(now.plus(1_000)), 0, "it has rested");
    }

    #[test]
    fn those_that_did_not_wait_are_not_paid_for_later() {
        let mut pace = Pace::new(10, 3);
        (0..10_000).for_each(|_| pace.take(BootTime(1_000)));
        assert_eq!(pace.wait_ms(BootTime(1_000)), 10);
    }

    #[test]
    fn without_a_burst_they_are_only_spaced() {
        let mut pace = Pace::new(10, 1);
        pace.take(BootTime(5));
        assert_eq!(pace.wait_ms(BootTime(7)), 8);
        assert_eq!(pace.wait_ms(BootTime(15)), 0);
    }
}
