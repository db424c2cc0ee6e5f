//! `outlast checkpoint verify`.

use outlast_proto::control::v1::VerifyCheckpointResponse;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, print_one, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Id or name of the job
    job: String,
    /// Which one [default: the newest that is sealed]
    checkpoint: Option<String>,
}

impl Verify {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let checkpoint = match self.checkpoint {
            Some(checkpoint) => checkpoint,
            None => newest(&session, &self.job).await?,
        };
        let answer = session.client.verify_checkpoint(&self.job, &checkpoint).await?;
        print_one(session.format, &answer, || table(&answer))?;
        Ok(judge(&answer))
    }
}

async fn newest(session: &Session, job: &str) -> Result<String, Problem> {
    let answer = session.client.list_checkpoints(job).await?;
    let newest = answer.checkpoints.iter().filter(|one| one.state == "sealed").max_by_key(|one| one.step);
    newest.map(|one| one.id.clone()).ok_or_else(|| {
        Problem::new(Exit::NotFound, format!("{} has no sealed checkpoint", answer.job_id))
            .next(format!("`outlast checkpoint list {job}` shows what there is"))
    })
}

fn table(answer: &VerifyCheckpointResponse) -> String {
    let paint = Paint::stdout();
    let mut columns = Columns::new(&["CHECKPOINT", "RANK", "NODE", "OUTCOME", "DETAIL"]);
    for result in &answer.results {
        columns.row(&[
            answer.checkpoint.clone(),
            result.rank.to_string(),
            result.node.clone(),
            paint.state(&result.outcome),
            result.detail.clone(),
        ]);
    }
    columns.finish()
}

fn judge(answer: &VerifyCheckpointResponse) -> Exit {
    match (answer.intact, answer.restorable) {
        (true, _) => Exit::Done,
        (false, true) => {
            talk(&format!("{} can be restored, but not every recorded copy is good", answer.checkpoint));
            Exit::Failed
        }
        (false, false) => {
            talk(&format!(
                "{} cannot be restored now: some rank has no good copy in reach",
                answer.checkpoint
            ));
            Exit::Failed
        }
    }
}
