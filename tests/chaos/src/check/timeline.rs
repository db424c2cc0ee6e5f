//! All events that any watcher saw, joined by their index.

use std::collections::BTreeMap;

use crate::history::{Happened, Record, What};

#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Index → events, in order.
    pub(crate) entries: BTreeMap<u64, Vec<Happened>>,
    /// Index → when somebody first saw it.
    pub(crate) seen_at: BTreeMap<u64, u64>,
    /// Indices that no watcher was told about.
    pub(crate) gaps: Vec<(u64, u64)>,
}

impl Timeline {
    pub(crate) fn of(records: &[Record]) -> Self {
        let mut timeline = Self::default();
        let mut covered: Vec<(u64, u64)> = Vec::new();
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for record in records {
            let What::Watched { watcher, index, lost_before, events, .. } = &record.what else { continue };
            let next = next.entry(watcher).or_insert(1);
            covered.push(((*next).max(*lost_before), *index));
            *next = (*next).max(index + 1);
            if !events.is_empty() {
                timeline.entries.entry(*index).or_insert_with(|| events.clone());
                timeline.seen_at.entry(*index).or_insert(record.at);
            }
        }
        timeline.gaps = gaps(covered);
        timeline
    }

    /// Every event with its index.
    pub(crate) fn events(&self) -> impl Iterator<Item = (u64, &Happened)> {
        self.entries.iter().flat_map(|(index, events)| events.iter().map(move |event| (*index, event)))
    }

    /// Whether something between these two indices is known to nobody.
    pub(crate) fn has_gap_between(&self, one: u64, other: u64) -> bool {
        self.gaps.iter().any(|(from, to)| *from < other && *to > one)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.gaps.is_empty()
    }
}

fn gaps(mut covered: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    covered.retain(|(from, to)| from <= to);
    covered.sort_unstable();
    let (mut gaps, mut next) = (Vec::new(), 1);
    for (from, to) in covered {
        if from > next {
            gaps.push((next, from - 1));
        }
        next = next.max(to + 1);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::super::testing::{event, watched};
    use super::*;

    #[test]
    fn what_one_watcher_missed_another_one_has() {
        let some = || vec![event("job_submitted", "j1", "", "")];
        let missed = [watched(1, "a", 3, 0, some()), watched(2, "a", 9, 7, some())];
        assert_eq!(Timeline::of(&missed).gaps, [(4, 6)]);
        let both = [missed.as_slice(), &[watched(3, "b", 6, 0, some())]].concat();
        let timeline = Timeline::of(&both);
        assert!(timeline.is_complete());
        assert_eq!(timeline.events().count(), 3);
    }
}
