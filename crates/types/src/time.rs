//! Times as data. Pure code never asks a clock; it is told.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Milliseconds, as a length of time.
pub type Millis = u64;

/// A point on a leader's wall clock, in milliseconds since 1970 UTC. For people and records; no safety depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WallTime(pub u64);

impl WallTime {
    /// Milliseconds from `earlier` to `self`; 0 where the clock went back.
    pub fn since(self, earlier: Self) -> Millis {
        self.0.saturating_sub(earlier.0)
    }
    pub fn plus(self, millis: Millis) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// The year 9999 in milliseconds; later times cannot be written as RFC 3339.
const WALL_TIME_MS_MAX: u64 = 253_402_300_799_999;

impl fmt::Display for WallTime {
    /// RFC 3339 with milliseconds, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.min(WALL_TIME_MS_MAX));
        write!(f, "{}", humantime::format_rfc3339_millis(time))
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A point on one machine's `CLOCK_BOOTTIME`, in milliseconds. Comparable only on the machine (and boot) it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(pub u64);

impl BootTime {
    pub fn since(self, earlier: Self) -> Millis {
        self.0.saturating_sub(earlier.0)
    }
    pub fn plus(self, millis: Millis) -> Self {
        Self(self.0.saturating_add(millis))
    }
    pub fn minus(self, millis: Millis) -> Self {
        Self(self.0.saturating_sub(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_are_rfc_3339_and_never_panic() {
        assert_eq!(WallTime(1_000).to_string(), "1970-01-01T00:00:01.000Z");
        assert!(WallTime(u64::MAX).to_string().starts_with("9999-12-31T23:59:59"));
        assert_eq!(WallTime(1).since(WallTime(5)), 0);
    }
}
