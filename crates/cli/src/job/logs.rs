//! `outlast job logs`.

use outlast_proto::control::v1::JobLogsRequest;

use crate::connection::Session;
use crate::job::printer::LinePrinter;
use crate::problem::{Exit, Problem};

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// Id or name
    job: String,
    /// Go on until the job is over, through failovers, without a gap or a repeat
    #[arg(short, long)]
    follow: bool,
    /// Only the newest so many lines of each rank
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    tail: u32,
    /// Only this rank; may be repeated
    #[arg(long, value_name = "RANK")]
    rank: Vec<u32>,
    /// Only this attempt's number
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    attempt: u64,
    /// Say when each line was written
    #[arg(long)]
    timestamps: bool,
}

impl Logs {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let job = session.client.get_job(&self.job).await?;
        let mut printer = LinePrinter::new(&job, session.format, self.timestamps);
        let mut stream = session.client.job_logs(JobLogsRequest {
            // By its id: a newer job with the name must not cut in after a failover.
            job: job.id,
            ranks: self.rank,
            follow: self.follow,
            tail: self.tail,
            attempt: self.attempt,
            cursors: Vec::new(),
        });
        while let Some(line) = stream.next().await? {
            printer.print(line)?;
        }
        printer.finish()?;
        Ok(Exit::Done)
    }
}
