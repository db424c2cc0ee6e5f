//! The page: what was done, what held, how long things took.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::times::times;
use super::{About, Outcome};
use crate::check::{Timeline, Verdict};
use crate::history::{Answer, Phase, Record, What};

/// Of each checker; the history has them all.
const VIOLATIONS_MAX: usize = 20;

pub(super) fn page(
    records: &[Record],
    timeline: &Timeline,
    about: &About,
    verdicts: &[Verdict],
    missing: &[String],
    outcome: Outcome,
) -> String {
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = head(&mut page, about, outcome, missing);
    let _ = done(&mut page, records, about);
    let _ = held(&mut page, verdicts);
    let _ = took(&mut page, records, timeline);
    page
}

fn head(page: &mut String, about: &About, outcome: Outcome, missing: &[String]) -> std::fmt::Result {
    let word = match outcome {
        Outcome::Passed => "passed",
        Outcome::Violated => "VIOLATED",
        Outcome::Rejected => "REJECTED: it did not do what it claims",
    };
    writeln!(page, "# Chaos: {word}\n")?;
    writeln!(page, "* seed {}, {}", about.seed, about.form)?;
    writeln!(page, "* again: `{}`", about.command)?;
    for missing in missing {
        writeln!(page, "* missing: {missing}")?;
    }
    writeln!(page)
}

fn done(page: &mut String, records: &[Record], about: &About) -> std::fmt::Result {
    writeln!(page, "## What was done\n\n| nemesis | took hold | did not | could not |\n|---|---|---|---|")?;
    let mut counts: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    for record in records {
        let What::Fault { nemesis, phase, effective, .. } = &record.what else { continue };
        let counts = counts.entry(nemesis).or_default();
        match (phase, effective) {
            (Phase::End, true) => counts[0] += 1,
            (Phase::End, false) => counts[1] += 1,
            (Phase::Skipped, _) => counts[2] += 1,
            (Phase::Begin, _) => {}
        }
    }
    for (nemesis, [held, idle, skipped]) in counts {
        writeln!(page, "| {nemesis} | {held} | {idle} | {skipped} |")?;
    }
    for wanted in &about.wanted {
        if let Some(lacking) = &wanted.lacking {
            writeln!(page, "| {} | not on this machine: {lacking} | | |", wanted.nemesis)?;
        }
    }
    writeln!(page, "\n{}\n", asked(records))
}

fn asked(records: &[Record]) -> String {
    let answers = |fits: fn(&Answer) -> bool| {
        records
            .iter()
            .filter(|record| matches!(&record.what, What::Return { answer, .. } if fits(answer)))
            .count()
    };
    format!(
        "Clients: {} submissions acknowledged, {} cancellations, {} reads of jobs, {} lists, {} refused, {} unknown.",
        answers(|answer| matches!(answer, Answer::Submitted { .. })),
        answers(|answer| matches!(answer, Answer::Cancelled { .. })),
        answers(|answer| matches!(answer, Answer::Job { .. })),
        answers(|answer| matches!(answer, Answer::Jobs { .. })),
        answers(|answer| matches!(answer, Answer::Refused { .. } | Answer::NotFound)),
        answers(|answer| matches!(answer, Answer::Unknown { .. })),
    )
}

fn held(page: &mut String, verdicts: &[Verdict]) -> std::fmt::Result {
    writeln!(page, "## What held\n\n| checker | rule | looks | violations |\n|---|---|---|---|")?;
    for Verdict { name, rule, checked, violations } in verdicts {
        writeln!(page, "| {name} | {rule} | {checked} | {} |", violations.len())?;
    }
    writeln!(page)?;
    for verdict in verdicts.iter().filter(|verdict| !verdict.violations.is_empty()) {
        for violation in verdict.violations.iter().take(VIOLATIONS_MAX) {
            writeln!(page, "* **{}**: {violation}", verdict.name)?;
        }
        let more = verdict.violations.len().saturating_sub(VIOLATIONS_MAX);
        if more > 0 {
            writeln!(page, "* **{}**: and {more} more", verdict.name)?;
        }
    }
    writeln!(page)
}

fn took(page: &mut String, records: &[Record], timeline: &Timeline) -> std::fmt::Result {
    writeln!(
        page,
        "## How long it took (ms)\n\n| what | n | min | median | 90 % | max |\n|---|---|---|---|---|---|"
    )?;
    for (what, times) in times(records, timeline) {
        writeln!(page, "| {what} | {} |", times.row())?;
    }
    for gap in &timeline.gaps {
        writeln!(page, "\nNo watcher was told of the indices {} to {}.", gap.0, gap.1)?;
    }
    writeln!(page, "\n![faults above, attempts below](run.svg)")
}
