//! How long the disk's syncs take: the last ones, kept for status and for the warning about timers.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

/// Enough for a p99 that means something, small enough to sort on each status call.
const SAMPLES_MAX: usize = 1_024;

/// Microseconds; zero where nothing was measured yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SyncTimes {
    pub samples: usize,
    pub p50_us: u64,
    pub p99_us: u64,
    /// The slowest one where there are fewer than a thousand: on the careful side.
    pub p999_us: u64,
    pub max_us: u64,
    pub last_us: u64,
}

impl SyncTimes {
    /// From microseconds in the order in which they were measured.
    pub(crate) fn of(samples: Vec<u64>) -> Self {
        let last_us = samples.last().copied().unwrap_or(0);
        let mut sorted = samples;
        sorted.sort_unstable();
        let at = |per_mille: usize| {
            let place = (sorted.len() * per_mille / 1_000).min(sorted.len().saturating_sub(1));
            sorted.get(place).copied().unwrap_or(0)
        };
        Self {
            samples: sorted.len(),
            p50_us: at(500),
            p99_us: at(990),
            p999_us: at(999),
            max_us: at(1_000),
            last_us,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<VecDeque<u64>>);

impl Meter {
    pub(crate) fn record(&self, took: Duration) {
        let mut samples = self.0.lock();
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(took.as_micros() as u64);
    }

    pub(crate) fn times(&self) -> SyncTimes {
        SyncTimes::of(self.0.lock().iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_samples_and_few_samples_give_the_slowest() {
        let times = SyncTimes::of((1..=2_000).rev().collect());
        assert_eq!((times.p50_us, times.p99_us, times.p999_us), (1_001, 1_981, 1_999));
        assert_eq!((times.samples, times.max_us, times.last_us), (2_000, 2_000, 1));
        let few = SyncTimes::of(vec![5, 900, 7]);
        assert_eq!((few.p999_us, few.p99_us), (900, 900));
        assert_eq!(SyncTimes::of(Vec::new()), SyncTimes::default());
    }
}
