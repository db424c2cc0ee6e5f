//! Only the current attempt seals (invariants 24, 34): when a checkpoint is sealed, its attempt has not ended, no newer one
//! has started, and no newer step is sealed already.

use std::collections::BTreeMap;

use super::{Timeline, Verdict, group_of};

#[derive(Default)]
struct Group<'a> {
    /// Started last, and whether it has ended.
    current: Option<(&'a str, bool)>,
    sealed_step: Option<u64>,
}

pub(super) fn check(timeline: &Timeline) -> Verdict {
    let mut verdict = Verdict::new("seals", "only the current attempt seals, and sealed steps only grow");
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    // Job and checkpoint → its attempt.
    let mut opened: BTreeMap<(&str, String), &str> = BTreeMap::new();
    let mut before = 0;
    for (index, event) in timeline.events() {
        if timeline.has_gap_between(before, index) {
            // Who is current is not known until the next one starts.
            groups.values_mut().for_each(|group| group.current = None);
        }
        before = index;
        let group = groups.entry(group_of(&event.attempt)).or_default();
        match event.kind.as_str() {
            "attempt_started" => group.current = Some((&event.attempt, false)),
            "attempt_ended" => {
                if let Some((current, ended)) = &mut group.current {
                    *ended |= *current == event.attempt;
                }
            }
            "checkpoint_opened" => {
                opened.insert((&event.job, checkpoint(&event.text)), &event.attempt);
            }
            "checkpoint_sealed" => {
                let Some(attempt) = opened.get(&(event.job.as_str(), checkpoint(&event.text))) else {
                    continue;
                };
                let group = groups.entry(group_of(attempt)).or_default();
                let Some((current, ended)) = group.current else { continue };
                verdict.check(current == *attempt && !ended, || {
                    let is = if ended { "has ended" } else { "is current" };
                    format!("at {index}: {} by {attempt}, while {current} {is}", event.text)
                });
                let step = last_number(&event.text);
                verdict.check(group.sealed_step <= step, || {
                    format!("at {index}: {}, after step {:?} was sealed", event.text, group.sealed_step)
                });
                group.sealed_step = group.sealed_step.max(step);
            }
            _ => {}
        }
    }
    verdict
}

/// `ck7` in a sentence.
pub(super) fn checkpoint(text: &str) -> String {
    let is_one = |word: &&str| word.strip_prefix("ck").is_some_and(|rest| rest.parse::<u64>().is_ok());
    text.split([' ', ':', ',']).find(is_one).unwrap_or_default().to_owned()
}

pub(super) fn last_number(text: &str) -> Option<u64> {
    text.rsplit(' ').find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{event, watched};
    use super::*;
    use crate::history::Happened;

    fn started(attempt: &str) -> Happened {
        event("attempt_started", "j1", attempt, "")
    }
    fn ended(attempt: &str) -> Happened {
        event("attempt_ended", "j1", attempt, "")
    }
    fn opened(attempt: &str, checkpoint: &str, step: u64) -> Happened {
        event(
            "checkpoint_opened",
            "j1",
            attempt,
            &format!("checkpoint {checkpoint} of {attempt} was opened at step {step}"),
        )
    }
    fn sealed(checkpoint: &str, step: u64) -> Happened {
        event(
            "checkpoint_sealed",
            "j1",
            "",
            &format!("checkpoint {checkpoint} of j1 was sealed at step {step}"),
        )
    }
    fn wrong(events: Vec<Happened>) -> usize {
        let records: Vec<_> =
            (1..).zip(events).map(|(index, event)| watched(index, "a", index, 0, vec![event])).collect();
        check(&Timeline::of(&records)).violations.len()
    }

    #[test]
    fn a_seal_of_the_current_attempt_is_good() {
        let one = "j1/0@1.1";
        assert_eq!(wrong(vec![started(one), opened(one, "ck1", 10), sealed("ck1", 10), ended(one)]), 0);
    }

    #[test]
    fn a_seal_after_the_end_or_by_an_old_attempt_is_found() {
        let (one, two) = ("j1/0@1.1", "j1/0@1.2");
        assert_eq!(wrong(vec![started(one), opened(one, "ck1", 10), ended(one), sealed("ck1", 10)]), 1);
        assert_eq!(wrong(vec![started(one), opened(one, "ck1", 10), started(two), sealed("ck1", 10)]), 1);
    }

    #[test]
    fn what_happened_in_a_gap_is_not_held_against_a_seal() {
        let (one, two) = ("j1/0@1.1", "j1/0@1.2");
        let records = [
            watched(1, "a", 1, 0, vec![started(one)]),
            watched(2, "a", 9, 5, vec![opened(two, "ck2", 10)]),
            watched(3, "a", 10, 0, vec![sealed("ck2", 10)]),
        ];
        assert!(check(&Timeline::of(&records)).violations.is_empty(), "the second began between 2 and 4");
    }

    #[test]
    fn a_step_that_goes_back_is_found() {
        let one = "j1/0@1.1";
        let back = vec![
            started(one),
            opened(one, "ck1", 20),
            sealed("ck1", 20),
            opened(one, "ck2", 10),
            sealed("ck2", 10),
        ];
        assert_eq!(wrong(back), 1);
    }
}
