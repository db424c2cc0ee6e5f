//! Event streams are ordered, unique, complete, and the same for everybody (invariant 18).

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Answer, Happened, Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let rule =
        "events come in order, once, the same to every watcher, and no acknowledged submission is missing";
    let mut verdict = Verdict::new("watches", rule);
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut first: BTreeMap<u64, (&str, &[Happened])> = BTreeMap::new();
    let mut told: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for record in records {
        let What::Watched { watcher, index, events, .. } = &record.what else { continue };
        let newest = newest.entry(watcher).or_default();
        if !events.is_empty() {
            verdict.check(*index > *newest, || {
                format!(
                    "{watcher} got events of index {index} after it was told that all up to {newest} was sent"
                )
            });
            told.entry(watcher).or_default().push(*index);
            let (who, theirs) = *first.entry(*index).or_insert((watcher, events));
            verdict.check(theirs == events.as_slice(), || {
                format!(
                    "{watcher} and {who} were told different things of index {index}: {events:?}, {theirs:?}"
                )
            });
        }
        *newest = (*newest).max(*index);
    }
    check_complete(records, &first, &mut verdict);
    check_submissions(records, &mut verdict);
    verdict
}

/// Whoever was told that all up to an index was sent must have got what others got below it.
fn check_complete(records: &[Record], all: &BTreeMap<u64, (&str, &[Happened])>, verdict: &mut Verdict) {
    let mut next: BTreeMap<&str, u64> = BTreeMap::new();
    for record in records {
        let What::Watched { watcher, index, lost_before, events, .. } = &record.what else { continue };
        let next = next.entry(watcher).or_insert(1);
        // What is said to be lost is not held against the stream.
        let from = (*next).max(*lost_before);
        let to = if events.is_empty() { index + 1 } else { *index };
        let missed: Vec<u64> =
            if from < to { all.range(from..to).map(|(index, _)| *index).collect() } else { vec![] };
        verdict.check(missed.is_empty(), || format!("{watcher} was not told what happened at {missed:?}"));
        *next = (*next).max(index + 1);
    }
}

fn check_submissions(records: &[Record], verdict: &mut Verdict) {
    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    let mut by_index = BTreeMap::new();
    let mut has_gap = false;
    for record in records {
        let What::Watched { index, events, lost_before, .. } = &record.what else { continue };
        has_gap |= *lost_before > 0;
        by_index.entry(*index).or_insert(events);
    }
    for event in by_index.values().copied().flatten().filter(|event| event.kind == "job_submitted") {
        *told.entry(&event.job).or_default() += 1;
    }
    for record in records {
        let What::Return { answer: Answer::Submitted { job }, .. } = &record.what else { continue };
        let times = told.get(job.as_str()).copied().unwrap_or(0);
        verdict.check(times == 1 || times == 0 && has_gap, || {
            format!("the submission of {job} was told {times} times")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, event, submitted, watched};
    use super::*;

    fn one(job: &str) -> Vec<Happened> {
        vec![event("job_submitted", job, "", "")]
    }

    fn wrong(records: &[Record]) -> usize {
        check(records).violations.len()
    }

    #[test]
    fn a_good_stream_passes_and_a_repeated_event_is_found() {
        let good =
            [done(0, 1, submitted("j1")), watched(1, "a", 3, 0, one("j1")), watched(2, "a", 5, 0, vec![])];
        assert_eq!(wrong(&good), 0);
        let again = [good.as_slice(), &[watched(3, "a", 3, 0, one("j1"))]].concat();
        assert_eq!(wrong(&again), 1);
        let late = [watched(1, "a", 5, 0, vec![]), watched(2, "a", 4, 0, one("j1"))];
        assert_eq!(wrong(&late), 2, "late, and missed, after it was said that all up to 5 was sent");
    }

    #[test]
    fn an_event_that_only_one_watcher_got_is_found() {
        let records = [watched(1, "a", 3, 0, one("j1")), watched(1, "b", 4, 0, one("j2"))];
        assert_eq!(wrong(&records), 1, "b missed 3");
        let told = [watched(1, "a", 3, 0, one("j1")), watched(1, "b", 4, 4, one("j2"))];
        assert_eq!(wrong(&told), 0, "b was told that it missed something");
    }

    #[test]
    fn different_stories_are_found() {
        let records = [watched(1, "a", 3, 0, one("j1")), watched(1, "b", 3, 0, one("j2"))];
        assert_eq!(wrong(&records), 1);
    }

    #[test]
    fn an_acknowledged_submission_without_its_event_is_found() {
        let records = [done(0, 1, submitted("j7")), watched(1, "a", 3, 0, one("j1"))];
        assert_eq!(wrong(&records), 1);
    }
}
