//! What came of a run: a page for people, a picture, and the verdict.

mod page;
mod picture;
mod times;

use std::path::Path;

use anyhow::{Context, Result};

use crate::check::{Timeline, Verdict, Wanted, check, coverage};
use crate::history::Record;

/// What is told of a run beside its history.
pub(crate) struct About {
    pub(crate) seed: u64,
    pub(crate) command: String,
    pub(crate) form: String,
    pub(crate) wanted: Vec<Wanted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Violated,
    /// It did not do what it claims; its verdicts prove nothing.
    Rejected,
}

/// Checks the history and writes `report.md` and `run.svg` beside it.
///
/// # Errors
/// When the files cannot be written.
pub(crate) fn write(records: &[Record], about: &About, out: &Path) -> Result<Outcome> {
    let verdicts = check(records);
    let missing = coverage(records, &about.wanted, &verdicts);
    let outcome = outcome(&verdicts, &missing);
    let timeline = Timeline::of(records);
    let page = page::page(records, &timeline, about, &verdicts, &missing, outcome);
    std::fs::write(out.join("report.md"), &page).context("could not write the report")?;
    let picture = picture::picture(records, &timeline, about.seed);
    std::fs::write(out.join("run.svg"), picture).context("could not write the picture")?;
    println!("{page}");
    println!("chaos: history, report, picture and logs are in {}", out.display());
    Ok(outcome)
}

fn outcome(verdicts: &[Verdict], missing: &[String]) -> Outcome {
    if verdicts.iter().any(|verdict| !verdict.violations.is_empty()) {
        Outcome::Violated
    } else if missing.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_weighs_more_than_what_was_missing() {
        let verdict = |violations: &[&str]| Verdict {
            name: "reads",
            rule: "",
            checked: 1,
            violations: violations.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(outcome(&[verdict(&[])], &[]), Outcome::Passed);
        assert_eq!(outcome(&[verdict(&[])], &["x".to_owned()]), Outcome::Rejected);
        assert_eq!(outcome(&[verdict(&["bad"])], &["x".to_owned()]), Outcome::Violated);
    }
}
