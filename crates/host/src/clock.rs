//! The clocks of this machine. `CLOCK_BOOTTIME` goes on while the machine sleeps, which `Instant` does not: only it may
//! measure leases and deadlines.

use outlast_types::{BootTime, WallTime};

/// Comparable within one boot.
#[cfg(not(feature = "simulated"))]
pub fn boot_now() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootTime(now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000)
}

/// For records and people; no safety depends on it.
#[cfg(not(feature = "simulated"))]
pub fn wall_now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Some day in 2026, so that nothing depends on when a seed is run.
#[cfg(feature = "simulated")]
const EPOCH_MS: u64 = 1_780_000_000_000;

/// Simulated machines never start anew: their clock is the simulation's.
#[cfg(feature = "simulated")]
pub fn boot_now() -> BootTime {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    BootTime(1_000_000 + elapsed.as_millis() as u64)
}

#[cfg(feature = "simulated")]
pub fn wall_now() -> WallTime {
    WallTime(EPOCH_MS + boot_now().0)
}
