//! When a worker is told that a checkpoint is due. Pure; one per worker.

use outlast_types::{BootTime, Millis};

/// Where the coordinators say nothing: a minute.
const AUTO_EVERY_MS: Millis = 60_000;

#[derive(Clone, Debug)]
pub(crate) struct CheckpointDue {
    every_ms: Millis,
    every_steps: u64,
    /// Of the newest save, or of the start.
    saved_at: BootTime,
    saved_step: u64,
    /// The supervisor wants one, and none was begun since.
    asked: bool,
}

impl CheckpointDue {
    /// `every_ms`, `every_steps`: 0 where the policy does not count that way; both 0 means `auto`.
    pub(crate) fn new(every_ms: Millis, every_steps: u64, now: BootTime, restored_step: u64) -> Self {
        let every_ms = if every_ms == 0 && every_steps == 0 { AUTO_EVERY_MS } else { every_ms };
        Self { every_ms, every_steps, saved_at: now, saved_step: restored_step, asked: false }
    }

    /// The cluster has chosen another interval; what was asked for, or is under way, stays as it is.
    pub(crate) fn follow(&mut self, every_ms: Millis, every_steps: u64) {
        let policy = Self::new(every_ms, every_steps, self.saved_at, self.saved_step);
        (self.every_ms, self.every_steps) = (policy.every_ms, policy.every_steps);
    }

    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    pub(crate) fn is_due(&self, step: u64, now: BootTime) -> bool {
        self.asked
            || self.every_ms > 0 && now.since(self.saved_at) >= self.every_ms
            || self.every_steps > 0 && step.saturating_sub(self.saved_step) >= self.every_steps
    }

    pub(crate) fn save_begun(&mut self, step: u64, now: BootTime) {
        self.saved_at = now;
        self.saved_step = step;
        self.asked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_by_time_by_steps_by_default_and_on_request() {
        let at = BootTime;
        let mut by_time = CheckpointDue::new(1_000, 0, at(5_000), 0);
        assert!(!by_time.is_due(9, at(5_999)) && by_time.is_due(9, at(6_000)));
        by_time.save_begun(9, at(6_000));
        assert!(!by_time.is_due(10, at(6_500)));
        by_time.ask();
        assert!(by_time.is_due(10, at(6_500)));
        by_time.save_begun(10, at(6_500));
        assert!(!by_time.is_due(10, at(6_500)), "one save answers one request");
        let by_steps = CheckpointDue::new(0, 100, at(0), 250);
        assert!(
            !by_steps.is_due(349, at(1 << 40)) && by_steps.is_due(350, at(0)),
            "counted from the restored step"
        );
        let mut auto = CheckpointDue::new(0, 0, at(0), 0);
        assert!(!auto.is_due(1, at(59_999)) && auto.is_due(1, at(60_000)));
        auto.follow(90_000, 0);
        assert!(!auto.is_due(1, at(89_999)) && auto.is_due(1, at(90_000)), "as the cluster has chosen since");
    }
}
