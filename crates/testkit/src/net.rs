//! The network: calls that are lost, late, doubled or overtaken; streams that are in order or break; links that are cut in
//! one direction or both.

use std::collections::BTreeSet;

use crate::event::Host;
use crate::rng::Rng;
use crate::scenario::Scenario;

/// How the links are at present.
#[derive(Clone, Debug, Default)]
pub(crate) struct Net {
    /// From, to.
    cut: BTreeSet<(Host, Host)>,
    /// In a thousand calls.
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    /// Calls that are much later than others.
    pub(crate) slow: u64,
    pub(crate) slow_max_us: u64,
    /// Streams that break, in a million messages.
    pub(crate) breaks_ppm: u64,
}

/// One way on a good network.
const DELAY_US: (u64, u64) = (200, 2_000);

impl Net {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        Self {
            cut: BTreeSet::new(),
            loss: scenario.loss,
            doubled: scenario.doubled,
            slow: scenario.slow,
            slow_max_us: 400_000,
            breaks_ppm: scenario.breaks_ppm,
        }
    }

    pub(crate) fn is_cut(&self, from: Host, to: Host) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        self.cut.insert((from, to));
    }

    pub(crate) fn mend(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn delay(&self, rng: &mut Rng) -> u64 {
        let usual = rng.within(DELAY_US.0, DELAY_US.1);
        if self.slow > 0 && rng.per_mille(self.slow) { usual + rng.below(self.slow_max_us) } else { usual }
    }

    /// When a message that is sent now arrives: never, once, or twice.
    pub(crate) fn arrivals(&self, rng: &mut Rng, from: Host, to: Host) -> (Option<u64>, Option<u64>) {
        if self.is_cut(from, to) || (self.loss > 0 && rng.per_mille(self.loss)) {
            return (None, None);
        }
        let first = self.delay(rng);
        let second = self.doubled > 0 && rng.per_mille(self.doubled);
        (Some(first), second.then(|| first + self.delay(rng) * 3))
    }
}
