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
    pub max_us: u64,
    pub last_us: u64,
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
        let samples = self.0.lock();
        let mut sorted: Vec<u64> = samples.iter().copied().collect();
        sorted.sort_unstable();
        let at =
            |per_cent: usize| sorted.get((sorted.len() * per_cent / 100).min(sorted.len().saturating_sub(1)));
        SyncTimes {
            samples: sorted.len(),
            p50_us: at(50).copied().unwrap_or(0),
            p99_us: at(99).copied().unwrap_or(0),
            max_us: sorted.last().copied().unwrap_or(0),
            last_us: samples.back().copied().unwrap_or(0),
        }
    }
}
