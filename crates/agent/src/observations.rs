//! What the agent saw, until the log has it: numbered per registration from 1, resent until applied. Pure.

use std::collections::VecDeque;

use outlast_control::state::Observation;
use outlast_proto::node::v1 as pb;

/// In one message; a node's daily life fits, and the entry in the log stays small.
const BATCH_MAX: usize = 256;
/// Above this nothing new is started. What runs adds two more at its end, so that the queue is bounded by the node's size.
const PENDING_BEFORE_STARTS_MAX: usize = 1_024;

#[derive(Debug)]
pub(crate) struct Observations {
    /// The number of the oldest pending one.
    first: u64,
    pending: VecDeque<Observation>,
}

impl Observations {
    pub(crate) fn new() -> Self {
        Self { first: 1, pending: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, observation: Observation) {
        self.pending.push_back(observation);
    }

    /// Everything up to this number is applied. Returns what that was.
    pub(crate) fn applied(&mut self, number: u64) -> Vec<Observation> {
        let count = number.saturating_add(1).saturating_sub(self.first);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.pending.len());
        self.first += count as u64;
        self.pending.drain(..count).collect()
    }

    /// The oldest pending ones; `None` where there is nothing to say.
    pub(crate) fn batch(&self) -> Option<pb::Observations> {
        if self.pending.is_empty() {
            return None;
        }
        let observations = self.pending.iter().take(BATCH_MAX).cloned().map(Into::into).collect();
        Some(pb::Observations { first: self.first, observations })
    }

    /// For a new registration: what was not applied is said again under new numbers. What concerns workers that the new
    /// registration does not hold is refused by `apply`, which harms nothing.
    pub(crate) fn renumber(&mut self) {
        self.first = 1;
    }

    pub(crate) fn has_room_for_starts(&self) -> bool {
        self.pending.len() <= PENDING_BEFORE_STARTS_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(rank: u32) -> Observation {
        Observation::Started { attempt: "j1/0@1.1".parse().expect("valid"), rank }
    }

    #[test]
    fn observations_are_repeated_under_their_numbers_until_applied() {
        let mut queue = Observations::new();
        assert!(queue.batch().is_none());
        (0..3).for_each(|rank| queue.push(started(rank)));
        let batch = queue.batch().expect("pending");
        assert_eq!((batch.first, batch.observations.len()), (1, 3));
        assert_eq!(queue.batch().expect("still pending"), batch);
        assert_eq!(queue.applied(2), [started(0), started(1)]);
        assert_eq!(queue.applied(2), [], "a repeated acknowledgement changes nothing");
        assert_eq!((queue.batch().expect("one").first, queue.is_empty()), (3, false));
        queue.renumber();
        assert_eq!(queue.batch().expect("one").first, 1);
        queue.applied(u64::MAX);
        assert!(queue.is_empty());
    }
}
