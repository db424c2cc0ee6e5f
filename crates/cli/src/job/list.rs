//! `outlast job list`.

use outlast_proto::control::v1::ListJobsResponse;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, age, duration, print_one, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only those that are not over
    #[arg(long)]
    active: bool,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl List {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let answer = session.client.list_jobs(self.active, self.limit).await?;
        print_one(session.format, &answer, || table(&answer))?;
        if answer.jobs.is_empty() {
            talk("no jobs; `outlast job run -- CMD…` starts one");
        } else if answer.truncated {
            talk(&format!("there are more; --limit {} shows more", self.limit.saturating_mul(10)));
        }
        Ok(Exit::Done)
    }
}

fn table(answer: &ListJobsResponse) -> String {
    let paint = Paint::stdout();
    let mut columns = Columns::new(&[
        "ID", "NAME", "KIND", "STATE", "WORKERS", "ATTEMPTS", "SEALED", "AGE", "RAN", "REASON",
    ]);
    for job in &answer.jobs {
        let sealed = if job.sealed_step == 0 { "-".to_owned() } else { job.sealed_step.to_string() };
        columns.row(&[
            job.id.clone(),
            job.name.clone(),
            job.kind.clone(),
            paint.state(&job.state),
            job.workers.to_string(),
            job.attempts.to_string(),
            sealed,
            age(job.submitted_at),
            duration(job.submitted_at, job.finished_at),
            job.reason.clone(),
        ]);
    }
    columns.finish()
}
