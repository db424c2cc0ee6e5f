//! Looking again and again, ever more seldom. Blocks: for threads.

use std::time::Duration;

/// A look at whether all is over is due this often: a pause must not keep a thread of an agent that has stopped.
const STOP_SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Each twice as long as the one before, up to a bound.
pub(crate) struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { next: min, max }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    /// Never ends.
    fn next(&mut self) -> Option<Duration> {
        let now = self.next;
        self.next = (now * 2).min(self.max);
        Some(now)
    }
}

/// Looks until something is seen. `None`: it was over before.
pub(crate) fn until_seen<T>(
    mut look: impl FnMut() -> Option<T>,
    pauses: impl Iterator<Item = Duration>,
    is_over: impl Fn() -> bool,
) -> Option<T> {
    for pause in pauses {
        if is_over() {
            return None;
        }
        if let Some(seen) = look() {
            return Some(seen);
        }
        let mut left = pause;
        while !left.is_zero() && !is_over() {
            let part = left.min(STOP_SEEN_WITHIN);
            std::thread::sleep(part);
            left -= part;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let seconds: Vec<u64> = Pauses::new(Duration::from_secs(2), Duration::from_secs(60))
            .take(7)
            .map(|pause| pause.as_secs())
            .collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn it_looks_until_something_is_seen_or_all_is_over() {
        let none = || Pauses::new(Duration::ZERO, Duration::ZERO);
        let looks = Cell::new(0);
        let third = || {
            looks.set(looks.get() + 1);
            (looks.get() == 3).then_some("seen")
        };
        assert_eq!(until_seen(third, none(), || false), Some("seen"));
        assert_eq!(until_seen(|| Some("seen"), none(), || true), None);
        let never = || {
            looks.set(looks.get() + 1);
            None::<()>
        };
        assert_eq!(until_seen(never, none(), || looks.get() >= 9), None);
        assert_eq!(looks.get(), 9);
    }
}
