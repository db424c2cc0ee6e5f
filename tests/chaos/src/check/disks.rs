//! A disk holds what the log may still need, and nothing else: what is retired or given up goes from every disk.

use super::Verdict;
use crate::history::{FinalJob, Kept, Record, What};

impl Kept {
    /// Whether these bytes may lie there when these are all jobs.
    pub(crate) fn may_stay(&self, jobs: &[FinalJob]) -> bool {
        let job = jobs.iter().find(|job| job.id == self.job);
        let checkpoint = job.and_then(|job| job.checkpoints.iter().find(|one| one.id == self.checkpoint));
        match checkpoint {
            Some(checkpoint) => !matches!(checkpoint.state.as_str(), "retired" | "aborted"),
            // Its record has left the log. What was never sealed may stay for a day; half-written files have no name.
            None => job.is_some() && !self.files.iter().any(|file| file.ends_with(".seal")),
        }
    }
}

pub(super) fn check(records: &[Record]) -> Verdict {
    let mut verdict =
        Verdict::new("disks", "what is retired or given up has gone from every disk, half-written files too");
    let jobs: Vec<FinalJob> = records
        .iter()
        .filter_map(|record| match &record.what {
            What::Final(job) => Some(job.clone()),
            _ => None,
        })
        .collect();
    for record in records {
        let What::Kept(kept) = &record.what else { continue };
        verdict.check(kept.may_stay(&jobs), || {
            let Kept { node, job, checkpoint, files } = kept;
            format!("{node} still has {} of checkpoint {checkpoint:?} of {job:?}", files.join(", "))
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::testing::record;
    use super::*;
    use crate::history::FinalCheckpoint;

    #[test]
    fn bytes_of_what_is_over_and_half_written_files_are_found() {
        let checkpoint = |id: &str, state: &str| FinalCheckpoint {
            id: id.to_owned(),
            step: 1,
            attempt: "j1/0@1.1".to_owned(),
            state: state.to_owned(),
        };
        let job = FinalJob {
            id: "j1".to_owned(),
            name: "p-1".to_owned(),
            state: "succeeded".to_owned(),
            reason: String::new(),
            attempts: vec![],
            checkpoints: vec![
                checkpoint("ck5", "sealed"),
                checkpoint("ck4", "retired"),
                checkpoint("ck3", "aborted"),
            ],
        };
        let wrong = |job_of: &str, checkpoint: &str, file: &str| {
            let kept = Kept {
                node: "n1".to_owned(),
                job: job_of.to_owned(),
                checkpoint: checkpoint.to_owned(),
                files: vec![file.to_owned()],
            };
            check(&[record(1, What::Kept(kept)), record(2, What::Final(job.clone()))]).violations.len()
        };
        assert_eq!((wrong("j1", "ck5", "0-aa"), wrong("j1", "ck1", "0-aa")), (0, 0));
        let over = [("ck4", "0-aa"), ("ck3", "0-aa.upload"), ("ck1", "0-aa.seal")];
        assert_eq!(over.map(|(checkpoint, file)| wrong("j1", checkpoint, file)), [1, 1, 1]);
        assert_eq!((wrong("", "", "7"), wrong("j9", "ck1", "0-aa")), (1, 1));
    }
}
