//! `outlast checkpoint list`.

use outlast_proto::control::v1::Checkpoint;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, age, print_one, size, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Id or name of the job
    job: String,
}

impl List {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let answer = session.client.list_checkpoints(&self.job).await?;
        print_one(session.format, &answer, || checkpoints_table(&answer.checkpoints))?;
        if answer.checkpoints.is_empty() {
            talk(&format!("{} has no checkpoints yet", answer.job_id));
        }
        Ok(Exit::Done)
    }
}

/// One line a checkpoint, in the order they came.
pub(crate) fn checkpoints_table(checkpoints: &[Checkpoint]) -> String {
    let paint = Paint::stdout();
    let mut columns = Columns::new(&["ID", "STEP", "STATE", "SIZE", "DURABILITY", "NOTES", "AGE", "ATTEMPT"]);
    for checkpoint in checkpoints {
        columns.row(&[
            checkpoint.id.clone(),
            checkpoint.step.to_string(),
            paint.state(&checkpoint.state),
            size(checkpoint.size_bytes),
            checkpoint.durability.clone(),
            notes(checkpoint),
            age(checkpoint.sealed_at.or(checkpoint.opened_at)),
            checkpoint.attempt.clone(),
        ]);
    }
    columns.finish()
}

/// What sets it apart.
pub(crate) fn notes(checkpoint: &Checkpoint) -> String {
    let notes =
        [(checkpoint.degraded, "degraded"), (checkpoint.proven, "proven"), (checkpoint.pinned, "pinned")];
    let notes: Vec<_> = notes.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
    if notes.is_empty() { "-".to_owned() } else { notes.join(",") }
}
