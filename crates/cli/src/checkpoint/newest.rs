//! Which checkpoint is meant where none is named.

use outlast_proto::control::v1::{Checkpoint, ListCheckpointsResponse};
use outlast_types::{AttemptId, CheckpointSeq};

use crate::connection::Session;
use crate::problem::{Exit, Problem};

/// The sealed ones, newest first, in the order of the log: attempt, step, sequence number. Not the step alone: after a
/// deliberate roll-back the newest has a lower one.
pub(super) fn newest_first(answer: ListCheckpointsResponse) -> Vec<Checkpoint> {
    let mut sealed = answer.checkpoints;
    sealed.retain(|checkpoint| checkpoint.state == "sealed");
    sealed.sort_by_key(|checkpoint| std::cmp::Reverse(recency(checkpoint)));
    sealed
}

fn recency(checkpoint: &Checkpoint) -> (u64, u64, u64, u64) {
    let attempt: Option<AttemptId> = checkpoint.attempt.parse().ok();
    let seq: Option<CheckpointSeq> = checkpoint.id.parse().ok();
    let (generation, number) = attempt.map_or((0, 0), |attempt| (attempt.generation, attempt.number));
    (generation, number, checkpoint.step, seq.map_or(0, |seq| seq.0))
}

/// The one that is named, or the newest that is sealed.
pub(super) async fn named_or_newest(
    session: &Session,
    job: &str,
    named: Option<&str>,
) -> Result<Checkpoint, Problem> {
    if let Some(named) = named {
        return Ok(session.client.get_checkpoint(job, named).await?);
    }
    let answer = session.client.list_checkpoints(job).await?;
    let job_id = answer.job_id.clone();
    newest_first(answer).into_iter().next().ok_or_else(|| nothing_sealed(&job_id, job))
}

pub(super) fn nothing_sealed(job_id: &str, job: &str) -> Problem {
    Problem::new(Exit::NotFound, format!("{job_id} has no sealed checkpoint"))
        .next(format!("`outlast checkpoint list {job}` shows what there is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_attempt_goes_before_the_highest_step() {
        let one = |id: &str, attempt: &str, step, state: &str| Checkpoint {
            id: id.to_owned(),
            attempt: attempt.to_owned(),
            step,
            state: state.to_owned(),
            ..Checkpoint::default()
        };
        let checkpoints = vec![
            one("ck1", "j1/0@1.5", 1_000, "sealed"),
            one("ck2", "j1/0@1.6", 950, "sealed"),
            one("ck3", "j1/0@1.6", 960, "quarantined"),
            one("ck4", "j1/0@1.6", 940, "sealed"),
        ];
        let sorted = newest_first(ListCheckpointsResponse { job_id: String::new(), checkpoints });
        let ids: Vec<_> = sorted.iter().map(|checkpoint| checkpoint.id.as_str()).collect();
        assert_eq!(ids, ["ck2", "ck4", "ck1"]);
    }
}
