//! The two clocks of a node, and the identity of its boot.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use outlast_types::{BootId, BootTime, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Now on `CLOCK_BOOTTIME`, which goes on while the machine sleeps: the only clock for leases and deadlines.
pub fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    BootTime(now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000)
}

/// Now on the wall clock, for people and records.
pub fn wall_now() -> WallTime {
    WallTime(wall_now_ns() / 1_000_000)
}

pub(crate) fn wall_now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The kernel's name for this boot.
///
/// # Errors
/// When `/proc` is not mounted or its answer is not a boot id.
pub fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    BootId::new(text.trim()).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward_and_the_boot_has_a_name() {
        let (boot, wall) = (boot_now(), wall_now());
        assert!(boot_now() >= boot && wall.0 > 1_600_000_000_000);
        assert_eq!(boot_id().expect("a boot id"), boot_id().expect("a boot id"));
    }
}
