//! Clocks of the simulated machines. True time is in microseconds; only the world and its observers know it.

use outlast_types::{BootTime, WallTime};

/// The wall clock of the world's beginning, so that no time is near zero.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// One machine's boot clock and wall clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// How much faster than true time the boot clock runs, in millionths.
    rate_ppm: i64,
    offset_us: i64,
    /// Against true time. Changes at a jump.
    wall_offset_ms: i64,
}

impl Clock {
    pub(crate) fn new(rate_ppm: i64, offset_ms: u64) -> Self {
        Self { rate_ppm, offset_us: offset_ms as i64 * 1_000, wall_offset_ms: 0 }
    }

    pub(crate) fn boot(&self, now_us: u64) -> BootTime {
        let now = now_us as i64;
        let shown = self.offset_us + now + now / 1_000 * self.rate_ppm / 1_000;
        BootTime((shown / 1_000).max(0) as u64)
    }

    /// The first true time at which the boot clock shows `time` or more, to the millisecond.
    pub(crate) fn when(&self, time: BootTime) -> u64 {
        let wanted = time.0 as i64 * 1_000 - self.offset_us;
        let mut guess = (wanted - wanted / 1_000 * self.rate_ppm / 1_000 - 3_000).max(0) as u64;
        while self.boot(guess) < time {
            guess += 500;
        }
        guess
    }

    pub(crate) fn wall(&self, now_us: u64) -> WallTime {
        let now_ms = (WALL_START_MS + now_us / 1_000) as i64;
        WallTime((now_ms + self.wall_offset_ms).max(0) as u64)
    }

    /// The wall clock jumps; the boot clock never does while its machine is awake.
    pub(crate) fn set_wall(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }

    /// The machine stood still and its boot clock with it: what a paused virtual machine does. Breaks the assumption of the
    /// leases.
    pub(crate) fn lose(&mut self, us: u64) {
        self.offset_us -= us as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_inverse_of_boot() {
        for rate in [-4_000, 0, 4_000] {
            let clock = Clock::new(rate, 77);
            for ms in [100u64, 5_000, 1_000_000] {
                let at = clock.when(BootTime(ms));
                assert!(
                    clock.boot(at) >= BootTime(ms) && clock.boot(at.saturating_sub(2_000)) < BootTime(ms)
                );
            }
        }
    }
}
