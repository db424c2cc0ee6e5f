//! Reads are linearizable (invariant 16), by an oracle of unique ids: a fact that somebody knew before a read began must
//! show in it. Facts only ever grow: a job is there, it was cancelled, it has had so many attempts, it is over, the log has
//! reached this index. That makes the check linear, where a search over orders would not end.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Answer, Call, JobSeen, Record, What};

/// What is known of a job for certain.
#[derive(Clone, Debug, Default)]
struct Fact {
    attempts: u64,
    /// The final state, once there is one.
    over: Option<String>,
    cancelled: bool,
}

/// What was known when a read began.
enum Floor {
    Get {
        job: String,
        fact: Option<Fact>,
        index: u64,
    },
    /// Jobs that were there, by number.
    List {
        known: BTreeMap<u64, Fact>,
    },
}

#[derive(Default)]
struct Oracle {
    facts: BTreeMap<u64, Fact>,
    index: u64,
    open: BTreeMap<u64, Floor>,
    cancels: BTreeMap<u64, String>,
}

pub(super) fn check(records: &[Record]) -> Verdict {
    let rule = "a read shows all that was known to anybody before it began";
    let mut verdict = Verdict::new("reads", rule);
    let mut oracle = Oracle::default();
    for record in records {
        match &record.what {
            What::Call { op, call, .. } => oracle.begin(*op, call),
            What::Return { op, answer } => oracle.end(*op, answer, &mut verdict),
            _ => {}
        }
    }
    verdict
}

fn number(job: &str) -> u64 {
    job.trim_start_matches('j').parse().unwrap_or(0)
}

impl Oracle {
    fn begin(&mut self, op: u64, call: &Call) {
        match call {
            Call::Get { job } => {
                let fact = self.facts.get(&number(job)).cloned();
                self.open.insert(op, Floor::Get { job: job.clone(), fact, index: self.index });
            }
            Call::List => {
                self.open.insert(op, Floor::List { known: self.facts.clone() });
            }
            Call::Cancel { job } => {
                self.cancels.insert(op, job.clone());
            }
            Call::Submit { .. } => {}
        }
    }

    fn end(&mut self, op: u64, answer: &Answer, verdict: &mut Verdict) {
        let floor = self.open.remove(&op);
        match (floor, answer) {
            (Some(Floor::Get { job, fact: Some(_), .. }), Answer::NotFound) => {
                verdict.check(false, || format!("read {op}: {job} was known before and is not found"));
            }
            (Some(Floor::Get { fact, index: floor, .. }), Answer::Job { seen, index }) => {
                verdict.check(*index >= floor, || {
                    format!("read {op} of {} is of index {index}; another was of {floor} before", seen.id)
                });
                if let Some(fact) = fact {
                    verdict.check(true, String::new);
                    verdict.violations.extend(contradictions(op, &fact, seen));
                }
                self.index = self.index.max(*index);
            }
            (Some(Floor::List { known }), Answer::Jobs { seen, truncated }) => {
                verdict.violations.extend(check_list(op, &known, seen, *truncated));
                verdict.checked += 1;
            }
            _ => {}
        }
        self.learn(op, answer);
    }

    fn learn(&mut self, op: u64, answer: &Answer) {
        match answer {
            Answer::Submitted { job } => {
                self.facts.entry(number(job)).or_default();
            }
            Answer::Job { seen, .. } => self.saw(seen),
            Answer::Cancelled { seen } => {
                self.saw(seen);
                if let Some(job) = self.cancels.remove(&op) {
                    self.facts.entry(number(&job)).or_default().cancelled = true;
                }
            }
            Answer::Jobs { seen, .. } => seen.iter().for_each(|job| self.saw(job)),
            _ => {}
        }
    }

    fn saw(&mut self, seen: &JobSeen) {
        let fact = self.facts.entry(seen.number()).or_default();
        fact.attempts = fact.attempts.max(seen.attempts);
        fact.cancelled |= seen.state == "cancelling" || seen.state == "cancelled";
        if seen.is_over() {
            fact.over.get_or_insert_with(|| seen.state.clone());
        }
    }
}

fn check_list(op: u64, known: &BTreeMap<u64, Fact>, seen: &[JobSeen], truncated: bool) -> Vec<String> {
    let by_number: BTreeMap<u64, &JobSeen> = seen.iter().map(|job| (job.number(), job)).collect();
    // The newest come first, so what was cut off is older than all that came.
    let oldest = if truncated { by_number.keys().next().copied().unwrap_or(u64::MAX) } else { 0 };
    let mut wrong = Vec::new();
    for (number, fact) in known.range(oldest..) {
        match by_number.get(number) {
            None => wrong.push(format!("list {op}: j{number} was known before and is not in it")),
            Some(job) => wrong.extend(contradictions(op, fact, job)),
        }
    }
    wrong
}

fn contradictions(op: u64, fact: &Fact, seen: &JobSeen) -> Vec<String> {
    let mut wrong = Vec::new();
    let JobSeen { id, state, attempts, .. } = seen;
    if fact.over.as_ref().is_some_and(|over| over != state) {
        wrong.push(format!(
            "read {op}: {id} is {state}, and was {} before",
            fact.over.as_deref().unwrap_or_default()
        ));
    }
    if fact.attempts > *attempts {
        wrong.push(format!("read {op}: {id} has had {attempts} attempts, and {} before", fact.attempts));
    }
    if fact.cancelled && !seen.is_over() && state != "cancelling" {
        wrong.push(format!("read {op}: {id} is {state} after its cancellation was acknowledged"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::testing::{call, done, get, seen, submit, submitted};
    use super::*;

    fn read(at: u64, op: u64, job: JobSeen, index: u64) -> [Record; 2] {
        [call(at, op, get(&job.id)), done(at + 1, op, Answer::Job { seen: job, index })]
    }

    fn wrong(parts: &[&[Record]]) -> usize {
        check(&parts.concat()).violations.len()
    }

    #[test]
    fn a_read_that_began_after_an_acknowledgement_must_show_it() {
        let sent = [call(1, 1, submit("a")), done(2, 1, submitted("j1"))];
        let lost = [call(3, 2, get("j1")), done(4, 2, Answer::NotFound)];
        assert_eq!(wrong(&[&sent, &lost]), 1);
        let list = |seen| [call(3, 2, Call::List), done(4, 2, Answer::Jobs { seen, truncated: false })];
        assert_eq!(wrong(&[&sent, &list(vec![])]), 1);
        assert_eq!(wrong(&[&sent, &list(vec![seen("j1", "k-a", "pending")])]), 0);
    }

    #[test]
    fn a_read_that_began_before_may_miss_it() {
        let records = [
            call(1, 1, submit("a")),
            call(1, 2, Call::List),
            done(2, 1, submitted("j1")),
            done(3, 2, Answer::Jobs { seen: vec![], truncated: false }),
        ];
        assert!(check(&records).violations.is_empty());
    }

    #[test]
    fn reads_that_go_back_in_time_are_found() {
        let first = read(1, 1, seen("j1", "k-a", "running"), 20);
        assert_eq!(wrong(&[&first, &read(5, 2, seen("j1", "k-a", "running"), 19)]), 1, "the index");
        let over = read(1, 1, seen("j1", "k-a", "succeeded"), 20);
        assert_eq!(wrong(&[&over, &read(5, 2, seen("j1", "k-a", "running"), 20)]), 1, "the state");
        let more = read(1, 1, JobSeen { attempts: 3, ..seen("j1", "k-a", "running") }, 20);
        assert_eq!(wrong(&[&more, &read(5, 2, seen("j1", "k-a", "running"), 20)]), 1, "the attempts");
        assert_eq!(wrong(&[&first, &read(5, 2, seen("j1", "k-a", "succeeded"), 21)]), 0);
    }

    #[test]
    fn an_acknowledged_cancellation_that_does_not_show_is_found() {
        let cancel = [
            call(1, 1, Call::Cancel { job: "j1".to_owned() }),
            done(2, 1, Answer::Cancelled { seen: seen("j1", "k-a", "cancelling") }),
        ];
        assert_eq!(wrong(&[&cancel, &read(5, 2, seen("j1", "k-a", "running"), 9)]), 1);
        assert_eq!(wrong(&[&cancel, &read(5, 2, seen("j1", "k-a", "cancelled"), 9)]), 0);
    }

    #[test]
    fn a_truncated_list_may_leave_out_the_oldest_only() {
        let sent: Vec<Record> = (1..=3)
            .flat_map(|n| [call(1, n, submit(&n.to_string())), done(2, n, submitted(&format!("j{n}")))])
            .collect();
        let list = |numbers: &[u64]| {
            let seen = numbers.iter().map(|n| seen(&format!("j{n}"), &format!("k-{n}"), "pending")).collect();
            [call(3, 9, Call::List), done(4, 9, Answer::Jobs { seen, truncated: true })]
        };
        assert_eq!(wrong(&[&sent, &list(&[3, 2])]), 0);
        assert_eq!(wrong(&[&sent, &list(&[3, 1])]), 1);
    }
}
