//! Faults come and go within seconds, so writes must too: a cluster that has what it needs and takes none has lost itself.

use super::Verdict;
use crate::history::{Answer, Record, What};

/// Faults that meet may cost a majority for one after the other; this is several times the worst that was seen.
const SILENT_MAX_NS: u64 = 60_000_000_000;

/// From the first fault to the first acknowledgement after the last one.
pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("available", "while faults come and go, writes are acknowledged again within a minute");
    let mut last: Option<u64> = None;
    for record in records {
        let is_write = match &record.what {
            What::Phase { name } if name == "faults" => {
                last = Some(record.at);
                false
            }
            What::Phase { name } => name == "heal",
            What::Return { answer: Answer::Submitted { .. } | Answer::Cancelled { .. }, .. } => true,
            _ => false,
        };
        let Some(before) = last.filter(|_| is_write) else { continue };
        let silent = record.at.saturating_sub(before);
        verdict.check(silent <= SILENT_MAX_NS, || {
            format!("no write was acknowledged for {} s", silent / 1_000_000_000)
        });
        last = match &record.what {
            What::Phase { .. } => None,
            _ => Some(record.at),
        };
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, record, submitted};
    use super::*;

    fn phase(at_s: u64, name: &str) -> Record {
        record(at_s * 1_000_000_000, What::Phase { name: name.to_owned() })
    }

    fn write(at_s: u64) -> Record {
        done(at_s * 1_000_000_000, at_s, submitted("j1"))
    }

    #[test]
    fn a_silent_minute_is_found_while_faults_go_on_and_only_then() {
        let well = [write(1), phase(100, "faults"), write(150), write(200), phase(210, "heal"), write(400)];
        assert_eq!((check(&well).violations.len(), check(&well).checked), (0, 3));
        let silent = [phase(100, "faults"), write(150), write(220), phase(230, "heal")];
        assert_eq!(check(&silent).violations, ["no write was acknowledged for 70 s"]);
        let to_the_end = [phase(100, "faults"), write(150), phase(300, "heal")];
        assert_eq!(check(&to_the_end).violations.len(), 1);
    }
}
