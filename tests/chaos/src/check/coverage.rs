//! A run that did not do what it claims is rejected, not passed.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Phase, Record, What};

/// A nemesis (or a checker's subject) that was asked for, or why it cannot be had on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) nemesis: &'static str,
    pub(crate) lacking: Option<String>,
}

/// What was asked for and did not come about.
pub(crate) fn coverage(records: &[Record], wanted: &[Wanted], verdicts: &[Verdict]) -> Vec<String> {
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    let mut tried: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in records {
        let What::Fault { nemesis, phase, effective, note, .. } = &record.what else { continue };
        match (phase, effective) {
            (Phase::End, true) => *done.entry(nemesis).or_default() += 1,
            (Phase::End | Phase::Skipped, _) => tried.entry(nemesis).or_default().push(note),
            (Phase::Begin, _) => {}
        }
    }
    let missing =
        wanted.iter().filter(|wanted| wanted.lacking.is_none() && !done.contains_key(wanted.nemesis));
    let mut missing: Vec<String> = missing
        .map(|wanted| {
            let notes = tried.get(wanted.nemesis).map(|notes| notes.join("; ")).unwrap_or_default();
            format!("{} never took hold {notes}", wanted.nemesis).trim_end().to_owned()
        })
        .collect();
    let excused = |name: &str| wanted.iter().any(|wanted| wanted.nemesis == name && wanted.lacking.is_some());
    let idle = verdicts.iter().filter(|verdict| verdict.checked == 0 && !excused(verdict.name));
    missing.extend(idle.map(|verdict| format!("the checker {:?} had nothing to look at", verdict.name)));
    missing
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;

    fn fault(phase: Phase, effective: bool) -> Record {
        let (nemesis, note) = ("kill-leader".to_owned(), "why".to_owned());
        record(1, What::Fault { id: 1, nemesis, phase, targets: vec![], note, effective })
    }

    #[test]
    fn a_fault_that_never_took_hold_rejects_the_run() {
        let wanted = [Wanted { nemesis: "kill-leader", lacking: None }];
        assert!(coverage(&[fault(Phase::End, true)], &wanted, &[]).is_empty());
        for records in [
            vec![],
            vec![fault(Phase::Begin, false)],
            vec![fault(Phase::End, false)],
            vec![fault(Phase::Skipped, false)],
        ] {
            assert_eq!(coverage(&records, &wanted, &[]).len(), 1, "{records:?}");
        }
        let lacking = [Wanted { nemesis: "kill-leader", lacking: Some("no root".to_owned()) }];
        assert!(coverage(&[], &lacking, &[]).is_empty(), "it is told instead");
    }

    #[test]
    fn a_checker_without_anything_to_look_at_rejects_the_run() {
        let idle = Verdict::new("reads", "");
        assert_eq!(coverage(&[], &[], &[idle]).len(), 1);
    }
}
