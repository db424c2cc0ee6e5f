//! Workers of two attempts of an `exclusive` group never run at one time (invariant 23), by what they wrote themselves.

use std::collections::BTreeMap;

use super::{Verdict, group_of};
use crate::clients::EXCLUSIVE;
use crate::history::{Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict = Verdict::new("exclusive", "two attempts of an exclusive group never run at one time");
    // Group → attempt → first and last sign of life of any rank.
    let mut lives: BTreeMap<&str, BTreeMap<&str, (u64, u64)>> = BTreeMap::new();
    for record in records {
        let What::Work(work) = &record.what else { continue };
        if !work.name.starts_with(EXCLUSIVE) {
            continue;
        }
        let group = lives.entry(group_of(&work.attempt)).or_default();
        let life = group.entry(&work.attempt).or_insert((work.at, work.at));
        *life = (life.0.min(work.at), life.1.max(work.at));
    }
    for attempts in lives.values() {
        let mut lives: Vec<_> = attempts.iter().collect();
        lives.sort_by_key(|(_, (first, _))| *first);
        verdict.checked += 1;
        for pair in lives.windows(2) {
            let ((one, (_, end)), (two, (begin, _))) = (pair[0], pair[1]);
            verdict.check(end < begin, || {
                format!("{one} still ran {} ms after {two} had begun", (end - begin) / 1_000_000)
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::work;
    use super::*;
    use crate::history::WorkKind::{Started, Stepped};

    #[test]
    fn an_overlap_is_found_in_exclusive_jobs_only() {
        let overlap = |name: &str| {
            [
                work(10, name, "j1/0@1.1", Started, 0),
                work(20, name, "j1/0@1.2", Started, 0),
                work(21, name, "j1/0@1.1", Stepped, 1),
            ]
        };
        assert_eq!(check(&overlap("x-1")).violations.len(), 1);
        assert_eq!(check(&overlap("xg-1")).violations.len(), 1);
        assert!(check(&overlap("p-1")).violations.is_empty());
    }

    #[test]
    fn one_after_the_other_is_good() {
        let records = [
            work(10, "x-1", "j1/0@1.1", Started, 0),
            work(19, "x-1", "j1/0@1.1", Stepped, 1),
            work(20, "x-1", "j1/0@1.2", Started, 0),
            work(11, "x-2", "j2/0@1.1", Started, 0),
        ];
        let verdict = check(&records);
        assert_eq!((verdict.violations.len(), verdict.checked), (0, 3));
    }
}
