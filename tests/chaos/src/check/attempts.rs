//! The audit of attempts is unbroken (invariants 19, 21, 22): numbers only grow, one is over before the next begins, every
//! end has a cause, and nothing starts in a job that is over.

use std::collections::{BTreeMap, BTreeSet};

use super::{Timeline, Verdict, group_of, number_of};
use crate::history::{FinalJob, Record, What};

pub(super) fn check(records: &[Record], timeline: &Timeline) -> Verdict {
    let rule = "attempt numbers grow, one ends before the next begins, ends have causes, nothing starts after a cancel";
    let mut verdict = Verdict::new("attempts", rule);
    check_events(timeline, &mut verdict);
    for record in records {
        if let What::Final(job) = &record.what {
            check_final(job, &mut verdict);
        }
    }
    verdict
}

fn check_events(timeline: &Timeline, verdict: &mut Verdict) {
    let mut current: BTreeMap<&str, &str> = BTreeMap::new();
    let mut newest: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut closed: BTreeSet<&str> = BTreeSet::new();
    for (index, event) in timeline.events() {
        let group = group_of(&event.attempt);
        match event.kind.as_str() {
            "attempt_started" => {
                let number = number_of(&event.attempt);
                let before = newest.insert(group, number).unwrap_or_default();
                verdict.check(number > before, || {
                    format!("at {index}: {} came after {before:?}", event.attempt)
                });
                let open = current.insert(group, &event.attempt);
                verdict.check(open.is_none() || !timeline.is_complete(), || {
                    format!(
                        "at {index}: {} began before {} had ended",
                        event.attempt,
                        open.unwrap_or_default()
                    )
                });
                verdict.check(!closed.contains(event.job.as_str()), || {
                    format!("at {index}: {} began although its job is over or cancelled", event.attempt)
                });
            }
            "attempt_ended" => {
                current.remove(group);
            }
            "job_changed" if is_closing(&event.text) => {
                closed.insert(&event.job);
            }
            _ => {}
        }
    }
}

fn is_closing(text: &str) -> bool {
    let state = text.split(" is ").nth(1).unwrap_or_default();
    ["cancelling", "cancelled", "succeeded", "failed"].iter().any(|closing| state.starts_with(closing))
}

fn check_final(job: &FinalJob, verdict: &mut Verdict) {
    let numbers: Vec<(u64, u64)> = job.attempts.iter().map(|attempt| number_of(&attempt.id)).collect();
    let groups: BTreeSet<&str> = job.attempts.iter().map(|attempt| group_of(&attempt.id)).collect();
    for group in groups {
        let of_group = job.attempts.iter().filter(|attempt| group_of(&attempt.id) == group);
        let numbers: Vec<u64> = of_group.map(|attempt| attempt.number).collect();
        verdict.check(numbers.windows(2).all(|pair| pair[0] < pair[1]), || {
            format!("{group} has had attempts {numbers:?}, in this order")
        });
    }
    verdict.checked += numbers.len() as u64;
    for attempt in &job.attempts {
        verdict.check(attempt.phase == "ended", || format!("{} is {} at the end", attempt.id, attempt.phase));
        let is_explained =
            !attempt.cause.is_empty() || attempt.phase != "ended" || attempt.cause_is_success(job);
        verdict.check(is_explained, || format!("{} ended and nothing says why", attempt.id));
    }
}

impl crate::history::FinalAttempt {
    /// The one that brought the job to its end needs no cause.
    fn cause_is_success(&self, job: &FinalJob) -> bool {
        job.state == "succeeded" && job.attempts.last().is_some_and(|last| last.id == self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{event, record, watched};
    use super::*;
    use crate::history::{FinalAttempt, Happened};

    fn wrong(events: Vec<Happened>) -> usize {
        let records: Vec<_> =
            (1..).zip(events).map(|(index, event)| watched(index, "a", index, 0, vec![event])).collect();
        check(&[], &Timeline::of(&records)).violations.len()
    }

    fn started(attempt: &str) -> Happened {
        event("attempt_started", "j1", attempt, "")
    }
    fn ended(attempt: &str) -> Happened {
        event("attempt_ended", "j1", attempt, "")
    }

    #[test]
    fn two_at_a_time_and_numbers_that_go_back_are_found() {
        let (one, two) = ("j1/0@1.1", "j1/0@1.2");
        assert_eq!(wrong(vec![started(one), ended(one), started(two), ended(two)]), 0);
        assert_eq!(wrong(vec![started(one), started(two)]), 1);
        assert_eq!(wrong(vec![started(two), ended(two), started(one)]), 1);
        assert_eq!(wrong(vec![started(one), ended(one), started(one)]), 1, "a number is never used again");
    }

    #[test]
    fn an_attempt_after_a_cancel_is_found() {
        let cancelled = event("job_changed", "j1", "", "job j1 is cancelling: by hand");
        assert_eq!(wrong(vec![cancelled, started("j1/0@1.1")]), 1);
    }

    #[test]
    fn an_end_without_a_cause_and_an_open_end_are_found() {
        let last = |phase: &str, cause: &str| {
            let (phase, cause) = (phase.to_owned(), cause.to_owned());
            let (id, restore_from) = ("j1/0@1.1".to_owned(), String::new());
            let attempt = FinalAttempt {
                id,
                number: 1,
                phase,
                cause,
                restore_from,
                restore_step: 0,
                passed_over: vec![],
            };
            let (id, name, state) = ("j1".to_owned(), "p-1".to_owned(), "failed".to_owned());
            let job = FinalJob {
                id,
                name,
                state,
                reason: String::new(),
                attempts: vec![attempt],
                checkpoints: vec![],
            };
            check(&[record(1, What::Final(job))], &Timeline::default()).violations.len()
        };
        assert_eq!((last("ended", "node_lost"), last("ended", ""), last("running", "")), (0, 1, 1));
    }
}
