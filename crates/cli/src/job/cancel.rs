//! `outlast job cancel`.

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{confirm, print_one};

#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// Id or name
    job: String,
    /// Why, for the record
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Cancel {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let job = session.client.get_job(&self.job).await?;
        let what = format!("cancelling {} ({}, {}) stops its workers for good", job.id, job.name, job.state);
        // One that is over is refused by the cluster, which says so better than a question.
        confirm(self.yes || job.finished_at.is_some(), &what)?;
        // By its id: another job with the name may have come while somebody thought about it.
        let job = session.client.cancel_job(&job.id, &self.reason).await?;
        print_one(session.format, &job, || format!("{} {}\n", job.id, job.state))?;
        Ok(Exit::Done)
    }
}
