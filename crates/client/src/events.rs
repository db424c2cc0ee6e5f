//! What happens, across reconnects: each batch once, in order, from the index behind the last one.

use outlast_proto::control::v1::{WatchEventsRequest, WatchEventsResponse};
use tokio::time::Instant;
use tonic::Streaming;

use crate::backoff::Backoff;
use crate::budget::Budget;
use crate::logs::patience;
use crate::{Client, ClientError};

/// Events as they come; see [`EventStream::next`].
pub struct EventStream {
    client: Client,
    job: String,
    /// The next index wanted; 0: from now on.
    from_index: u64,
    source: Option<(Streaming<WatchEventsResponse>, String)>,
    backoff: Backoff,
    broken_since: Option<Instant>,
}

impl Client {
    /// Events of a job (of everything where `job` is empty) from an index on; 0: from now on.
    pub fn watch_events(&self, job: &str, from_index: u64) -> EventStream {
        EventStream {
            client: self.clone(),
            job: job.to_owned(),
            from_index,
            source: None,
            backoff: Backoff::new(),
            broken_since: None,
        }
    }
}

impl EventStream {
    /// The next batch, possibly without events (then it only says how far all is known). Never ends by itself.
    ///
    /// # Errors
    /// The job does not exist, or no coordinator could be reached for long.
    pub async fn next(&mut self) -> Result<WatchEventsResponse, ClientError> {
        loop {
            if self.source.is_none() {
                self.source = Some(self.open().await?);
            }
            let Some((stream, url)) = &mut self.source else { continue };
            match stream.message().await {
                // A coordinator that lags behind the one before it repeats what is known.
                Ok(Some(batch)) if batch.index < self.from_index && batch.lost_before == 0 => {}
                Ok(Some(batch)) => {
                    self.from_index = self.from_index.max(batch.index + 1);
                    self.broken_since = None;
                    self.backoff = Backoff::new();
                    return Ok(batch);
                }
                end => {
                    self.client.pool.avoid(&std::mem::take(url));
                    self.source = None;
                    self.pause(
                        end.err().map_or("the stream ended".into(), |status| status.message().to_owned()),
                    )
                    .await?;
                }
            }
        }
    }

    async fn open(&self) -> Result<(Streaming<WatchEventsResponse>, String), ClientError> {
        let request = WatchEventsRequest { job: self.job.clone(), from_index: self.from_index };
        let budget = Budget::stream(patience(&self.client));
        let answer = self
            .client
            .ask(budget, request, |mut stub, r| Box::pin(async move { stub.watch_events(r).await }))
            .await?;
        Ok((answer.value, answer.endpoint.url))
    }

    async fn pause(&mut self, why: String) -> Result<(), ClientError> {
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        if since.elapsed() > patience(&self.client) {
            return Err(ClientError::Failed {
                reason: format!("the event stream breaks again and again: {why}"),
            });
        }
        tokio::time::sleep(self.backoff.pause(0)).await;
        Ok(())
    }
}
