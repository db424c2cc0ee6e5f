//! What was sealed comes back (invariants 32, 33, 35): each attempt goes on from the newest sealed checkpoint or says why
//! not, workers get the very bytes they saved, and at the end every byte of the newest ones is good.

use std::collections::BTreeMap;

use super::seals::{checkpoint, last_number};
use super::{Timeline, Verdict, group_of};
use crate::history::{FinalAttempt, Record, What, WorkKind};

pub(super) fn check(records: &[Record], timeline: &Timeline) -> Verdict {
    let rule = "attempts go on from the newest sealed checkpoint, with the bytes that were saved; all can be read at the end";
    let mut verdict = Verdict::new("restores", rule);
    let finals = final_attempts(records);
    for record in records {
        match &record.what {
            What::Work(work) if work.did == WorkKind::Restored => {
                verdict.check(work.wrong.is_empty(), || {
                    format!("{} rank {}: {}", work.attempt, work.rank, work.wrong)
                });
                if let Some(attempt) = finals.get(work.attempt.as_str()) {
                    let wanted = attempt.restore_step;
                    verdict.check(work.step == wanted, || {
                        format!("{} went on from step {}, and was told {wanted}", work.attempt, work.step)
                    });
                }
            }
            What::Verified { job, checkpoint, restorable, note, .. } => {
                verdict.check(*restorable, || format!("{checkpoint} of {job} cannot be restored: {note}"));
            }
            _ => {}
        }
    }
    if timeline.is_complete() {
        check_choices(timeline, &finals, &mut verdict);
    }
    verdict
}

fn final_attempts(records: &[Record]) -> BTreeMap<&str, &FinalAttempt> {
    let finals = records.iter().filter_map(|record| match &record.what {
        What::Final(job) => Some(job.attempts.iter().map(|attempt| (attempt.id.as_str(), attempt))),
        _ => None,
    });
    finals.flatten().collect()
}

/// Which checkpoint each attempt was given when it was placed.
fn check_choices(timeline: &Timeline, finals: &BTreeMap<&str, &FinalAttempt>, verdict: &mut Verdict) {
    // Group → its newest sealed checkpoint and step; only what came back later is left out by name.
    let mut newest: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    let mut opened: BTreeMap<(&str, String), &str> = BTreeMap::new();
    for (index, event) in timeline.events() {
        match event.kind.as_str() {
            "checkpoint_opened" => {
                opened.insert((&event.job, checkpoint(&event.text)), group_of(&event.attempt));
            }
            "checkpoint_sealed" => {
                let name = checkpoint(&event.text);
                let (Some(group), Some(step)) =
                    (opened.get(&(event.job.as_str(), name.clone())), last_number(&event.text))
                else {
                    continue;
                };
                newest.insert(group, (name, step));
            }
            "checkpoint_quarantined" => {
                let name = checkpoint(&event.text);
                newest.retain(|group, (sealed, _)| {
                    !(group.starts_with(&format!("{}/", event.job)) && *sealed == name)
                });
            }
            "attempt_started" => {
                let Some((sealed, step)) = newest.get(group_of(&event.attempt)) else { continue };
                let passed_over =
                    finals.get(event.attempt.as_str()).is_some_and(|attempt| !attempt.passed_over.is_empty());
                let chosen = checkpoint(&event.text);
                verdict.check(chosen == *sealed || passed_over, || {
                    format!("at {index}: {}, although {sealed} of step {step} was sealed", event.text)
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{event, record, watched, work};
    use super::*;
    use crate::history::Work;

    fn story(second: &str) -> Timeline {
        let events = [
            event(
                "attempt_started",
                "j1",
                "j1/0@1.1",
                "attempt j1/0@1.1 was placed; it starts from the beginning",
            ),
            event("checkpoint_opened", "j1", "j1/0@1.1", "checkpoint ck1 of j1/0@1.1 was opened at step 20"),
            event("checkpoint_sealed", "j1", "", "checkpoint ck1 of j1 was sealed at step 20"),
            event("attempt_started", "j1", "j1/0@1.2", second),
        ];
        let records: Vec<_> =
            (1..).zip(events).map(|(index, event)| watched(index, "a", index, 0, vec![event])).collect();
        Timeline::of(&records)
    }

    #[test]
    fn an_attempt_that_forgets_what_is_sealed_is_found() {
        let good = story("attempt j1/0@1.2 was placed; it starts from ck1");
        assert_eq!(check(&[], &good).violations.len(), 0);
        assert_eq!(check(&[], &good).checked, 1);
        let bad = story("attempt j1/0@1.2 was placed; it starts from the beginning");
        assert_eq!(check(&[], &bad).violations.len(), 1);
    }

    #[test]
    fn wrong_bytes_and_unreadable_checkpoints_are_found() {
        let restored = work(1, "p-1", "j1/0@1.2", WorkKind::Restored, 20);
        let What::Work(work) = restored.what.clone() else { unreachable!("it is one") };
        let wrong = Work { wrong: "not what was saved".to_owned(), ..work };
        let empty = Timeline::default();
        assert!(check(&[restored], &empty).violations.is_empty());
        assert_eq!(check(&[record(1, What::Work(wrong))], &empty).violations.len(), 1);
        let verified = |restorable| {
            let (job, checkpoint, note) = ("j1".to_owned(), "ck1".to_owned(), String::new());
            record(2, What::Verified { job, checkpoint, restorable, intact: restorable, note })
        };
        assert_eq!(check(&[verified(true)], &empty).violations.len(), 0);
        assert_eq!(check(&[verified(false)], &empty).violations.len(), 1);
    }
}
