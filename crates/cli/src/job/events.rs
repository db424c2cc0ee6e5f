//! `outlast job events`.

use std::time::Duration;

use outlast_proto::control::v1::{Event, WatchEventsResponse};
use serde::Serialize;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{print_item, talk, time};

/// A coordinator sends what it knows at once; when it is silent for so long there is no more.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Id or name; without it, what happens in the whole cluster
    job: Option<String>,
    /// Go on as things happen, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

/// The JSON form of one event.
#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    at: Option<outlast_proto::time::Timestamp>,
    #[serde(flatten)]
    event: &'a Event,
}

impl Events {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let (job, now) = match &self.job {
            Some(job) => {
                let job = session.client.get_job(job).await?;
                (job.id, job.index)
            }
            None => (String::new(), session.client.cluster_status().await?.applied_index),
        };
        let mut stream = session.client.watch_events(&job, 1);
        loop {
            let batch = if self.follow {
                stream.next().await?
            } else {
                match tokio::time::timeout(SILENCE, stream.next()).await {
                    Ok(batch) => batch?,
                    Err(_silent) => return Ok(Exit::Done),
                }
            };
            print(&session, &batch)?;
            if !self.follow && batch.index >= now {
                return Ok(Exit::Done);
            }
        }
    }
}

fn print(session: &Session, batch: &WatchEventsResponse) -> Result<(), Problem> {
    // A job whose beginning is here has lost nothing.
    let is_whole = batch.events.iter().any(|event| event.kind == "job_submitted");
    if batch.lost_before > 0 && !is_whole {
        talk(&format!("events before index {} are no longer kept", batch.lost_before));
    }
    for event in &batch.events {
        let line = Line { index: batch.index, at: batch.at, event };
        print_item(session.format, &line, || {
            format!("{}  {:<22}  {}\n", time(batch.at), event.kind, event.text)
        })?;
    }
    Ok(())
}
