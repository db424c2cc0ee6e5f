//! One alarm on `CLOCK_BOOTTIME`: it goes on while the machine sleeps, which poll's own time-out does not.

use std::io;
use std::os::fd::OwnedFd;

use outlast_types::BootTime;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

pub(super) struct Timer {
    pub(super) fd: OwnedFd,
    armed: Option<BootTime>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { fd: timerfd_create(TimerfdClockId::Boottime, flags)?, armed: None })
    }

    /// Becomes readable at `at`; never with `None`. A time that has passed makes it readable at once.
    pub(super) fn set(&mut self, at: Option<BootTime>) -> io::Result<()> {
        if self.armed == at {
            return Ok(());
        }
        // All zeros would disarm it.
        let value = at.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |at| Timespec {
            tv_sec: i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at.0 % 1_000).expect("below 1000") * 1_000_000 + 1,
        });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &once)?;
        self.armed = at;
        Ok(())
    }
}
