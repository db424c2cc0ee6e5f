//! Deadlines, on the clock that goes on while the machine sleeps.

use std::time::Duration;

pub(crate) use outlast_host::{boot_now, wall_now};
use outlast_types::BootTime;

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
