//! The checkers: pure functions from a history to what is wrong with it. Each has tests that give it a bad history, since
//! a checker that nobody has seen fail proves nothing.

mod acknowledged;
mod attempts;
mod available;
mod coverage;
mod daemons;
mod disks;
mod exclusive;
mod finish;
mod leaders;
mod reads;
mod restores;
mod seals;
mod submits;
mod timeline;
mod usage;
mod watches;

#[cfg(test)]
mod testing;

pub(crate) use coverage::{Wanted, coverage};
pub(crate) use timeline::Timeline;

use crate::history::Record;

/// What one checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) name: &'static str,
    /// The rule, for the report.
    pub(crate) rule: &'static str,
    /// How many things it looked at: nothing to look at is no success.
    pub(crate) checked: u64,
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    fn new(name: &'static str, rule: &'static str) -> Self {
        Self { name, rule, checked: 0, violations: Vec::new() }
    }

    /// Counts one look; a false one is a violation.
    fn check(&mut self, holds: bool, wrong: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.violations.push(wrong());
        }
    }
}

pub(crate) fn check(records: &[Record]) -> Vec<Verdict> {
    let timeline = Timeline::of(records);
    vec![
        acknowledged::check(records),
        submits::check(records),
        reads::check(records),
        watches::check(records),
        exclusive::check(records),
        seals::check(&timeline),
        restores::check(records, &timeline),
        attempts::check(records, &timeline),
        leaders::check(records),
        available::check(records),
        finish::check(records),
        disks::check(records),
        daemons::check(records),
        usage::check(records),
    ]
}

/// `j3/0` of `j3/0@1.2`.
fn group_of(attempt: &str) -> &str {
    attempt.split('@').next().unwrap_or(attempt)
}

/// (generation, number) of `j3/0@1.2`.
fn number_of(attempt: &str) -> (u64, u64) {
    let numbers = attempt.split('@').nth(1).and_then(|text| text.split_once('.'));
    numbers
        .map_or((0, 0), |(generation, number)| (generation.parse().unwrap_or(0), number.parse().unwrap_or(0)))
}
