//! A job's lines across reconnects: cursors are kept here, so that a failover shows neither a gap nor a repeat.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use outlast_proto::control::v1::{JobLogsRequest, JobLogsResponse, LogCursor, LogLine};
use tokio::time::Instant;
use tonic::Streaming;

use crate::backoff::Backoff;
use crate::budget::Budget;
use crate::{Client, ClientError};

/// A broken stream is opened again for this many times the client's patience: whoever follows a log wants to sit
/// through a failover of the whole cluster.
const PATIENCE: u32 = 6;

/// An open stream and the coordinator that it comes from.
struct Source {
    lines: Streaming<JobLogsResponse>,
    url: String,
}

/// Lines as they come; see [`LogStream::next`].
pub struct LogStream {
    client: Client,
    request: JobLogsRequest,
    /// The next sequence number wanted of each (attempt, rank).
    cursors: BTreeMap<(String, u32), u64>,
    pending: VecDeque<LogLine>,
    source: Option<Source>,
    backoff: Backoff,
    /// Since when nothing came from any coordinator.
    broken_since: Option<Instant>,
}

impl Client {
    /// The lines of a job; nothing is asked before the first [`LogStream::next`].
    pub fn job_logs(&self, request: JobLogsRequest) -> LogStream {
        let seen = |cursor: &LogCursor| ((cursor.attempt.clone(), cursor.rank), cursor.next_seq);
        LogStream {
            client: self.clone(),
            cursors: request.cursors.iter().map(seen).collect(),
            request,
            pending: VecDeque::new(),
            source: None,
            backoff: Backoff::new(),
            broken_since: None,
        }
    }
}

impl LogStream {
    /// The next line; `None` when there are no more (when following: when the job is over and all was read).
    ///
    /// # Errors
    /// The job does not exist, or no coordinator could be reached for long.
    pub async fn next(&mut self) -> Result<Option<LogLine>, ClientError> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Ok(Some(line));
            }
            if self.source.is_none() {
                self.source = Some(self.open().await?);
            }
            let Some(source) = &mut self.source else { continue };
            match source.lines.message().await {
                Ok(Some(batch)) => self.accept(batch),
                Ok(None) => {
                    self.source = None;
                    if !self.request.follow || self.job_is_over().await? {
                        return Ok(None);
                    }
                    self.pause("the stream ended before the job did").await?;
                }
                Err(status) => {
                    let url = std::mem::take(&mut source.url);
                    self.source = None;
                    self.client.pool.avoid(&url);
                    self.pause(status.message()).await?;
                }
            }
        }
    }

    /// Where the reading stands, to go on from in a later call.
    pub fn cursors(&self) -> Vec<LogCursor> {
        let cursor = |((attempt, rank), next_seq): (&(String, u32), &u64)| LogCursor {
            attempt: attempt.clone(),
            rank: *rank,
            next_seq: *next_seq,
        };
        self.cursors.iter().map(cursor).collect()
    }

    async fn open(&self) -> Result<Source, ClientError> {
        let request = JobLogsRequest { cursors: self.cursors(), ..self.request.clone() };
        let budget = Budget::stream(patience(&self.client));
        let answer = self
            .client
            .ask(budget, request, |mut stub, r| Box::pin(async move { stub.job_logs(r).await }))
            .await?;
        Ok(Source { lines: answer.value, url: answer.endpoint.url })
    }

    /// Takes what is new; a coordinator that repeats lines costs nothing but the bytes.
    fn accept(&mut self, batch: JobLogsResponse) {
        self.broken_since = None;
        self.backoff = Backoff::new();
        for line in batch.lines {
            let next = self.cursors.entry((line.attempt.clone(), line.rank)).or_default();
            if line.seq >= *next {
                *next = line.seq + 1;
                self.pending.push_back(line);
            }
        }
    }

    async fn job_is_over(&self) -> Result<bool, ClientError> {
        Ok(self.client.get_job(&self.request.job).await?.finished_at.is_some())
    }

    async fn pause(&mut self, why: &str) -> Result<(), ClientError> {
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        tracing::debug!(why, "the log stream broke; opening it again");
        if since.elapsed() > patience(&self.client) {
            return Err(ClientError::Failed {
                reason: format!("the log stream breaks again and again: {why}"),
            });
        }
        tokio::time::sleep(self.backoff.pause(0)).await;
        Ok(())
    }
}

pub(crate) fn patience(client: &Client) -> Duration {
    client.timeout * PATIENCE
}
