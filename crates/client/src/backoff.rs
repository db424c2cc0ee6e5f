//! How long to wait before the next try: doubling, with jitter, and never against the server's word.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Short, because a failover is over in seconds and somebody waits for the answer.
const LONGEST: Duration = Duration::from_secs(1);
/// A server's wish is followed up to this; a broken one must not make us wait for ever.
const WISH_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The pause before the next try; `wish_ms` is what the server asked for, 0 for nothing.
    pub(crate) fn pause(&mut self, wish_ms: u64) -> Duration {
        let own = jittered(self.next);
        self.next = (self.next * 2).min(LONGEST);
        if wish_ms == 0 {
            return own;
        }
        // From the wish to a quarter more: never earlier, and not all at once.
        let wish = Duration::from_millis(wish_ms).min(WISH_MAX);
        wish + jittered(wish / 4)
    }
}

/// Between a half and the whole of it, so that many clients do not come back in step.
fn jittered(whole: Duration) -> Duration {
    let fraction = outlast_host::random::number().unwrap_or(u64::MAX / 2) as f64 / u64::MAX as f64;
    whole.mul_f64(0.5 + fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_follow_the_server() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause(0)).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 2);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST));
        assert!(pauses[9] >= LONGEST / 2);
        assert!(backoff.pause(300) >= Duration::from_millis(300));
        assert!(backoff.pause(u64::MAX) <= WISH_MAX + WISH_MAX / 4);
    }
}
