//! A request id is one job, however often and to whomever it is sent (invariant 15).

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use crate::history::{Answer, Call, JobSeen, Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict = Verdict::new("submits", "one request id is one job, and one job is one request id");
    let mut asked: BTreeMap<u64, (&str, &str)> = BTreeMap::new();
    let mut job_of: BTreeMap<&str, &str> = BTreeMap::new();
    let mut request_of: BTreeMap<&str, &str> = BTreeMap::new();
    let mut ids_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in records {
        match &record.what {
            What::Call { op, call: Call::Submit { request, name }, .. } => {
                asked.insert(*op, (request, name));
            }
            What::Return { op, answer: Answer::Submitted { job } } => {
                let Some((request, name)) = asked.get(op).copied() else { continue };
                let first = *job_of.entry(request).or_insert(job);
                verdict.check(first == job, || {
                    format!("request {request} was answered with {first} and with {job}")
                });
                let owner = *request_of.entry(job).or_insert(request);
                verdict.check(owner == request, || {
                    format!("{job} was the answer to requests {owner} and {request}")
                });
                ids_of.entry(name).or_default().insert(job);
            }
            What::Return { answer: Answer::Jobs { seen, .. }, .. } => {
                for JobSeen { id, name, .. } in seen {
                    ids_of.entry(name).or_default().insert(id);
                }
            }
            _ => {}
        }
    }
    let names: BTreeSet<&str> = asked.values().map(|(_, name)| *name).collect();
    for (name, ids) in ids_of {
        verdict.check(ids.len() == 1, || format!("{name} was submitted once and is there as {ids:?}"));
        verdict.check(names.contains(name), || format!("{name} is there and nobody ever submitted it"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, done, seen, submit, submitted};
    use super::*;

    fn twice(first: &str, second: &str) -> Vec<Record> {
        vec![
            call(1, 1, submit("a")),
            done(2, 1, submitted(first)),
            call(3, 2, submit("a")),
            done(4, 2, submitted(second)),
        ]
    }

    #[test]
    fn a_request_that_became_two_jobs_is_found() {
        assert!(check(&twice("j1", "j1")).violations.is_empty());
        assert!(!check(&twice("j1", "j2")).violations.is_empty());
    }

    #[test]
    fn a_job_that_is_two_requests_is_found() {
        let records = [
            call(1, 1, submit("a")),
            done(2, 1, submitted("j1")),
            call(3, 2, submit("b")),
            done(4, 2, submitted("j1")),
        ];
        assert!(!check(&records).violations.is_empty());
    }

    #[test]
    fn doubles_and_phantoms_in_lists_are_found() {
        let list = |seen| done(6, 9, Answer::Jobs { seen, truncated: false });
        let unknown = call(1, 1, submit("a"));
        let double =
            [unknown.clone(), list(vec![seen("j1", "k-a", "pending"), seen("j2", "k-a", "pending")])];
        assert_eq!(check(&double).violations.len(), 1);
        let phantom = [unknown, list(vec![seen("j1", "k-z", "pending")])];
        assert_eq!(check(&phantom).violations.len(), 1);
    }
}
