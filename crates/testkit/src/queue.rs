//! What happens next: events ordered by true time, and by their making where the time is one.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::event::Event;

struct Due {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    /// The heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Due>,
    number: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.heap.push(Due { at, number: self.number, event });
    }

    /// The next event with its time and number.
    pub(crate) fn pop(&mut self) -> Option<(u64, u64, Event)> {
        self.heap.pop().map(|due| (due.at, due.number, due.event))
    }
}
