//! The newest applied entries with their events, for watchers. Bounded: who comes too late is told from where on.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use outlast_consensus::AppliedEntry;
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};

use crate::member::Member;

/// Entries that are kept: some minutes of a busy cluster, days of a quiet one; about 10 MiB.
const ENTRIES_MAX: usize = 20_000;

#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<AppliedEntry>>,
    /// Events before this index are not known here; 0: all that ever were are.
    known_from: u64,
}

pub(crate) struct EventRing {
    ring: RwLock<Ring>,
    newest: watch::Sender<u64>,
}

/// What a watcher gets at a time.
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<AppliedEntry>>,
    /// Everything up to here is in this page or was not of interest.
    pub(crate) through: u64,
    /// Events before this index are lost to the watcher; 0: none.
    pub(crate) lost_before: u64,
}

impl EventRing {
    /// Knows everything after `applied`.
    pub(crate) fn new(applied: u64) -> Self {
        let known_from = if applied == 0 { 0 } else { applied + 1 };
        let ring = Ring { entries: VecDeque::new(), known_from };
        Self { ring: RwLock::new(ring), newest: watch::Sender::new(applied) }
    }

    /// Of a cluster that was made a moment ago: what was told before anybody could listen is the first entry.
    pub(crate) fn of_new_cluster(made: AppliedEntry) -> Self {
        let ring = Self { ring: RwLock::default(), newest: watch::Sender::new(made.index) };
        ring.push(Arc::new(made));
        ring
    }

    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn push(&self, entry: Arc<AppliedEntry>) {
        let index = entry.index;
        let mut ring = self.ring.write();
        if ring.entries.len() == ENTRIES_MAX
            && let Some(oldest) = ring.entries.pop_front()
        {
            ring.known_from = oldest.index + 1;
        }
        ring.entries.push_back(entry);
        drop(ring);
        self.newest.send_replace(index);
    }

    /// Entries were missed: what is known begins anew.
    fn forget_before(&self, index: u64) {
        let mut ring = self.ring.write();
        ring.entries.clear();
        ring.known_from = index;
    }

    /// At most `most` entries from `from` on.
    pub(crate) fn page(&self, from: u64, most: usize) -> Page {
        let ring = self.ring.read();
        let begin = ring.entries.partition_point(|entry| entry.index < from);
        let entries: Vec<_> = ring.entries.range(begin..).take(most).cloned().collect();
        let through = match entries.last() {
            Some(last) => last.index,
            None => (*self.newest.borrow()).max(from.saturating_sub(1)),
        };
        let lost_before = if from < ring.known_from { ring.known_from } else { 0 };
        Page { entries, through, lost_before }
    }
}

/// Fills the ring until the member is gone.
pub(crate) async fn collect(member: Weak<Member>, mut events: broadcast::Receiver<Arc<AppliedEntry>>) {
    loop {
        let received = events.recv().await;
        let Some(member) = member.upgrade() else { return };
        match received {
            Ok(entry) if entry.replaced => member.events.forget_before(entry.index + 1),
            Ok(entry) => {
                member.metrics.count(&member, &entry);
                member.events.push(entry);
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "the event ring fell behind; watchers will see a gap");
                let applied = member.state(|state| state.applied);
                member.events.forget_before(applied + 1);
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use outlast_control::state::Event;
    use outlast_types::WallTime;

    use super::*;

    fn entry(index: u64) -> Arc<AppliedEntry> {
        Arc::new(AppliedEntry {
            index,
            events: vec![Event::ClusterInitialized],
            at: WallTime(0),
            replaced: false,
        })
    }

    #[test]
    fn a_watcher_of_a_new_cluster_has_missed_nothing() {
        let ring = EventRing::of_new_cluster(AppliedEntry::clone(&entry(2)));
        ring.push(entry(3));
        let page = ring.page(1, 10);
        assert_eq!((page.entries.len(), page.lost_before), (2, 0));
        let joined = EventRing::new(0);
        joined.push(entry(2));
        assert_eq!(joined.page(1, 10).lost_before, 0, "a new member gets every entry");
        joined.forget_before(8);
        assert_eq!(joined.page(1, 10).lost_before, 8, "a snapshot took the place of entries");
    }

    #[test]
    fn a_late_watcher_is_told_what_it_missed() {
        let ring = EventRing::new(4);
        ring.push(entry(5));
        ring.push(entry(9));
        let page = ring.page(6, 10);
        assert_eq!((page.entries.len(), page.through, page.lost_before), (1, 9, 0));
        assert_eq!(ring.page(1, 1).lost_before, 5, "entries up to 4 were applied before this process began");
        assert_eq!(ring.page(1, 1).through, 5);
        assert_eq!(ring.page(10, 10).through, 9);
    }
}
