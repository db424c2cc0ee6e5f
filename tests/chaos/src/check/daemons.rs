//! No daemon ends by itself or panics but where a fault made it, and nothing is left when all were told to go.

use super::Verdict;
use crate::history::{Record, What};

/// Faults under which the log's disk answers with errors. sled panics then; the coordinator catches it and ends.
const DISK_FAULTS: &[&str] = &["io-errors", "full-disk", "power-cut", "power-cut-all"];

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("daemons", "no daemon panics or ends by itself, and nothing of the run is left");
    for record in records {
        match &record.what {
            What::Log { daemon, line } => {
                let is_excused = line.contains("/sled-") && lost_its_disk(records, daemon);
                verdict.check(is_excused, || format!("{daemon}: {line}"));
            }
            What::Left { thing } => verdict.check(false, || format!("left over: {thing}")),
            What::Usage(_) => verdict.checked += 1,
            _ => {}
        }
    }
    verdict
}

fn lost_its_disk(records: &[Record], daemon: &str) -> bool {
    records.iter().any(|record| {
        matches!(&record.what, What::Fault { nemesis, targets, .. }
            if DISK_FAULTS.contains(&nemesis.as_str()) && targets.iter().any(|target| target == daemon))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;
    use crate::history::Phase;

    #[test]
    fn a_panic_of_the_log_is_excused_only_where_its_disk_was_taken() {
        let line = "thread 'raft-log' panicked at registry/sled-0.34.7/src/logger.rs".to_owned();
        let panic = record(1, What::Log { daemon: "c1".to_owned(), line });
        let fault = |target: &str| {
            let (nemesis, targets, note) = ("io-errors".to_owned(), vec![target.to_owned()], String::new());
            record(0, What::Fault { id: 1, nemesis, phase: Phase::End, targets, note, effective: true })
        };
        assert_eq!(check(&[fault("c1"), panic.clone()]).violations.len(), 0);
        assert_eq!(check(&[fault("c2"), panic]).violations.len(), 1);
    }

    #[test]
    fn a_panic_and_a_left_over_process_are_found() {
        let line = What::Log { daemon: "c1".to_owned(), line: "thread 'main' panicked at".to_owned() };
        let left = What::Left { thing: "process 7".to_owned() };
        assert_eq!(check(&[record(1, line), record(2, left)]).violations.len(), 2);
    }
}
