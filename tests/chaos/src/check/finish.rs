//! Once all is healed, every job comes to the end that its program and its owner wanted (invariants 44 to 46, 49).

use super::Verdict;
use crate::history::{Record, What};

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("finish", "every job ends after the healing: by success, or because it was cancelled");
    for record in records {
        let What::Final(job) = &record.what else { continue };
        let is_good = matches!(job.state.as_str(), "succeeded" | "cancelled");
        verdict.check(is_good, || format!("{} ({}) is {}: {}", job.id, job.name, job.state, job.reason));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;
    use crate::history::FinalJob;

    #[test]
    fn a_job_that_failed_or_never_ends_is_found() {
        let wrong = |state: &str| {
            let (id, name, state) = ("j1".to_owned(), "p-1".to_owned(), state.to_owned());
            let job =
                FinalJob { id, name, state, reason: String::new(), attempts: vec![], checkpoints: vec![] };
            check(&[record(1, What::Final(job))]).violations.len()
        };
        assert_eq!((wrong("succeeded"), wrong("cancelled"), wrong("failed"), wrong("running")), (0, 0, 1, 1));
    }
}
