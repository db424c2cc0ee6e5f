//! The clocks of the shell.

use std::time::SystemTime;

use outlast_types::{BootTime, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Runs on while the machine sleeps; comparable within one boot.
pub(crate) fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    BootTime(now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000)
}

pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallTime(since.map_or(0, |since| since.as_millis() as u64))
}
