//! `outlast job submit`.

use std::path::PathBuf;

use crate::connection::Session;
use crate::job::file::{self, JobFile};
use crate::job::{bundle, follow};
use crate::problem::{Exit, Problem};
use crate::term::{print_one, talk};
use outlast_proto::control::v1::SubmitJobResponse;

const EXAMPLE: &str = "\
A job file (YAML, or TOML or JSON by its extension):
  name: digits
  kind: training                 # training | service | batch
  command: [python3, train.py]   # or a shell line under `script:`
  workdir: .                     # uploaded; .gitignore and .outlastignore are respected; at most 256 MiB
  workers: 2                     # or {min: 2, max: 8}
  resources: {cpus: 1, memory: 512MiB, gpus: 0}
  env: {EPOCHS: \"20\"}
  checkpoint: {every: 10s, keep: 3, durability: replicated}   # every: a time, `100 steps`, or auto
  recovery: {max_user_failures: 3, hang_after: auto}
  placement: {spread: zone, require: {disk: nvme}}
  exclusive: false";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Submit {
    /// The job file; `-` reads YAML from standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Another name than the file says
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Follow the job's output until its end, as `job run` does
    #[arg(long)]
    follow: bool,
}

impl Submit {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let mut job = file::read(&self.file)?;
        if let Some(name) = self.name {
            job.value["name"] = name.into();
            job = JobFile { workdir: job.workdir, ..file::check(job.value, "this", &PathBuf::new())? };
        }
        let submitted = submit(&session, &job).await?;
        if !self.follow {
            print_one(session.format, &submitted, || format!("{}\n", submitted.job_id))?;
            talk(&format!(
                "submitted {} as {}; `outlast job logs -f {}` follows it",
                submitted.name, submitted.job_id, submitted.job_id
            ));
            return Ok(Exit::Done);
        }
        talk(&format!("submitted {} as {}", submitted.name, submitted.job_id));
        follow::follow(&session, &submitted.job_id).await
    }
}

/// Uploads the workdir, then submits.
pub(crate) async fn submit(session: &Session, job: &JobFile) -> Result<SubmitJobResponse, Problem> {
    let digest = match &job.workdir {
        Some(workdir) => bundle::upload(session, workdir).await?,
        None => String::new(),
    };
    Ok(session.client.submit_job(job.value.to_string(), digest).await?)
}
