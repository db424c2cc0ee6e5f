//! The clocks of this process. `CLOCK_BOOTTIME` goes on while the machine sleeps, which `Instant` does not: only it may
//! measure leases and deadlines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outlast_types::{BootTime, WallTime};
use rustix::time::{ClockId, clock_gettime};

pub(crate) fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    BootTime(now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000)
}

/// For records and people; no safety depends on it.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A point in time by which a call has to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(BootTime);

impl Deadline {
    pub(crate) fn after(length: Duration) -> Self {
        Self(boot_now().plus(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)))
    }

    pub(crate) fn left(self) -> Duration {
        Duration::from_millis(self.0.since(boot_now()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// What is left, but not more than `most`: for one try of several.
    pub(crate) fn left_at_most(self, most: Duration) -> Duration {
        self.left().min(most)
    }
}
