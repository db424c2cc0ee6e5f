//! An acknowledged submission is never lost (invariant 14).

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Answer, Call, FinalJob, Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("acknowledged", "every acknowledged submission is there at the end, as it was sent");
    let finals: BTreeMap<&str, &FinalJob> = records
        .iter()
        .filter_map(|record| match &record.what {
            What::Final(job) => Some((job.id.as_str(), job)),
            _ => None,
        })
        .collect();
    if finals.is_empty() {
        // The run broke off before its last look; whoever judges it sees that nothing was checked.
        return verdict;
    }
    for (name, job) in acknowledged(records) {
        match finals.get(job) {
            None => verdict.check(false, || format!("{name} was acknowledged as {job}, which is gone")),
            Some(found) => verdict.check(found.name == name, || {
                format!("{job} was acknowledged for {name} and is {}", found.name)
            }),
        }
    }
    verdict
}

/// Name and job of every submission that was answered.
fn acknowledged(records: &[Record]) -> Vec<(&str, &str)> {
    let mut asked: BTreeMap<u64, &str> = BTreeMap::new();
    let mut acknowledged = Vec::new();
    for record in records {
        match &record.what {
            What::Call { op, call: Call::Submit { name, .. }, .. } => {
                asked.insert(*op, name);
            }
            What::Return { op, answer: Answer::Submitted { job } } => {
                acknowledged.extend(asked.get(op).map(|name| (*name, job.as_str())));
            }
            _ => {}
        }
    }
    acknowledged
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, done, record, submit, submitted};
    use super::*;

    fn last(id: &str, name: &str) -> Record {
        let (id, name) = (id.to_owned(), name.to_owned());
        let (state, reason) = ("succeeded".to_owned(), String::new());
        record(9, What::Final(FinalJob { id, name, state, reason, attempts: vec![], checkpoints: vec![] }))
    }

    #[test]
    fn a_lost_job_and_a_changed_one_are_found() {
        let asked = [call(1, 1, submit("a")), done(2, 1, submitted("j1"))];
        let good = [asked.as_slice(), &[last("j1", "k-a")]].concat();
        assert_eq!((check(&good).violations.len(), check(&good).checked), (0, 1));
        let gone = [asked.as_slice(), &[last("j2", "k-b")]].concat();
        assert_eq!(check(&gone).violations.len(), 1, "it is gone");
        assert_eq!(check(&asked).checked, 0, "nobody looked");
        let other = [asked.as_slice(), &[last("j1", "k-b")]].concat();
        assert_eq!(check(&other).violations.len(), 1, "it is another");
    }
}
