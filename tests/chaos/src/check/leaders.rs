//! At most one leader in a term (invariant 1), by what coordinators say.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict = Verdict::new("leaders", "a term has one leader");
    let mut leader_of: BTreeMap<u64, &str> = BTreeMap::new();
    for record in records {
        let What::Status { by, leader, term, .. } = &record.what else { continue };
        if leader.is_empty() {
            continue;
        }
        let known = *leader_of.entry(*term).or_insert(leader);
        verdict.check(known == leader, || {
            format!("{by} says that {leader} leads in term {term}; it was {known}")
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;

    #[test]
    fn two_leaders_of_one_term_are_found() {
        let status = |leader: &str, term| {
            let (from, by, leader) = ("c1".to_owned(), "c1".to_owned(), leader.to_owned());
            record(1, What::Status { from, by, leader, term })
        };
        assert!(check(&[status("c1", 1), status("c2", 2), status("", 2)]).violations.is_empty());
        assert_eq!(check(&[status("c1", 1), status("c2", 1)]).violations.len(), 1);
    }
}
