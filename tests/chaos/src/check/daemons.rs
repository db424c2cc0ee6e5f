//! No daemon ends by itself or panics but where a fault made it, and nothing is left when all were told to go.

use super::Verdict;
use crate::history::{Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("daemons", "no daemon panics or ends by itself, and nothing of the run is left");
    for record in records {
        match &record.what {
            What::Log { daemon, line } => verdict.check(false, || format!("{daemon}: {line}")),
            What::Left { thing } => verdict.check(false, || format!("left over: {thing}")),
            What::Usage(_) => verdict.checked += 1,
            _ => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;

    #[test]
    fn a_panic_and_a_left_over_process_are_found() {
        let line = What::Log { daemon: "c1".to_owned(), line: "thread 'main' panicked at".to_owned() };
        let left = What::Left { thing: "process 7".to_owned() };
        assert_eq!(check(&[record(1, line), record(2, left)]).violations.len(), 2);
    }
}
