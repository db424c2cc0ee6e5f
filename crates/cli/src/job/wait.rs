//! `outlast job wait`.

use std::time::Duration;

use crate::connection::Session;
use crate::job::follow::{self, verdict};
use crate::problem::{Exit, Problem};
use crate::term::{print_one, talk};

/// Each look is a linearizable read; nobody waits for a job to the millisecond.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Id or name
    job: String,
    /// Give up after this; exit code 1, the job goes on
    #[arg(long = "for", value_name = "TIME")]
    limit: Option<outlast_types::Span>,
}

impl Wait {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let id = session.client.get_job(&self.job).await?.id;
        let limit = self.limit.map_or(Duration::MAX, Duration::from);
        let Ok(job) = tokio::time::timeout(limit, follow::until_over(&session, &id, talk)).await else {
            return Err(Problem::new(Exit::Failed, format!("{id} is not over yet"))
                .because("the time of --for is over"));
        };
        let job = job?;
        print_one(session.format, &job, || format!("{} {}\n", job.id, job.state))?;
        verdict(&job)
    }
}
