//! One rank's bytes of a checkpoint across reconnects: a stream that breaks goes on at another coordinator behind what is
//! there already, and nothing counts as whole before its hash is the sealed one.

use std::time::Duration;

use outlast_proto::control::v1::{ReadShardRequest, ReadShardResponse};
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::backoff::Backoff;
use crate::budget::Budget;
use crate::error::Verdict;
use crate::{Client, ClientError, Tried};

/// Between two pieces: the coordinator may have to begin anew at another holder, up to where the last one broke off.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

struct Source {
    pieces: Streaming<ReadShardResponse>,
    url: String,
    /// Bytes of this stream that came already.
    at: u64,
}

/// The bytes as they come; see [`ShardStream::next`].
pub struct ShardStream {
    client: Client,
    request: ReadShardRequest,
    source: Option<Source>,
    hasher: blake3::Hasher,
    received: u64,
    /// As it was sealed: root and size.
    sealed: Option<(Vec<u8>, u64)>,
    node: String,
    backoff: Backoff,
    /// Since when nothing came from any coordinator.
    broken_since: Option<Instant>,
}

impl Client {
    /// The bytes of one rank of a sealed checkpoint; nothing is asked before the first [`ShardStream::next`].
    pub fn read_shard(&self, job: &str, checkpoint: &str, rank: u32) -> ShardStream {
        let (job, checkpoint) = (job.to_owned(), checkpoint.to_owned());
        ShardStream {
            client: self.clone(),
            request: ReadShardRequest { job, checkpoint, rank },
            source: None,
            hasher: blake3::Hasher::new(),
            received: 0,
            sealed: None,
            node: String::new(),
            backoff: Backoff::new(),
            broken_since: None,
        }
    }
}

impl ShardStream {
    /// The next bytes; `None` when all of them came and are those that were sealed.
    ///
    /// # Errors
    /// `Conflict`: no holder has good bytes. `Unreachable`: they cannot be read now. `Failed`: other bytes came.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            let Some(source) = &mut self.source else {
                self.source = Some(self.open().await?);
                continue;
            };
            match timeout(PIECE_TIMEOUT, source.pieces.message()).await {
                Ok(Ok(Some(piece))) => {
                    if let Some(news) = self.accept(piece)? {
                        return Ok(Some(news));
                    }
                }
                Ok(Ok(None)) => return self.check_whole().map(|()| None),
                Ok(Err(status)) => match Verdict::from(&status) {
                    Verdict::Final(error) => return Err(error),
                    Verdict::Again { why, hint, retry_after_ms, .. } => {
                        self.pause(why, hint, retry_after_ms).await?;
                    }
                    Verdict::Broken { why } => self.pause(why, String::new(), 0).await?,
                },
                Err(_) => self.pause("nothing came for a minute".to_owned(), String::new(), 0).await?,
            }
        }
    }

    async fn open(&self) -> Result<Source, ClientError> {
        let budget = Budget::stream(self.client.timeout);
        let request = self.request.clone();
        let answer = self
            .client
            .ask(budget, request, |mut stub, r| Box::pin(async move { stub.read_shard(r).await }))
            .await?;
        Ok(Source { pieces: answer.value, url: answer.endpoint.url, at: 0 })
    }

    /// What of a piece is new.
    fn accept(&mut self, piece: ReadShardResponse) -> Result<Option<Vec<u8>>, ClientError> {
        let ReadShardResponse { mut data, root, size_bytes, node } = piece;
        if !root.is_empty() {
            let sealed = (root, size_bytes);
            if self.sealed.get_or_insert_with(|| sealed.clone()) != &sealed {
                return Err(self.failed("the coordinators do not agree on what was sealed"));
            }
            self.node = node;
        }
        let Some(source) = &mut self.source else { return Ok(None) };
        let known = usize::try_from(self.received.saturating_sub(source.at)).unwrap_or(usize::MAX);
        source.at += data.len() as u64;
        data.drain(..known.min(data.len()));
        if data.is_empty() {
            return Ok(None);
        }
        self.hasher.update(&data);
        self.received += data.len() as u64;
        self.broken_since = None;
        self.backoff = Backoff::new();
        Ok(Some(data))
    }

    fn check_whole(&self) -> Result<(), ClientError> {
        let came = (self.hasher.finalize().as_bytes().to_vec(), self.received);
        match &self.sealed {
            Some(sealed) if *sealed == came => Ok(()),
            _ => Err(self.failed("other bytes came than were sealed")),
        }
    }

    fn failed(&self, why: &str) -> ClientError {
        let ReadShardRequest { checkpoint, rank, .. } = &self.request;
        let from = if self.node.is_empty() { String::new() } else { format!(" from node {}", self.node) };
        ClientError::Failed { reason: format!("rank {rank} of {checkpoint}{from}: {why}") }
    }

    /// Opens the stream anew, for as long as the client has patience.
    async fn pause(&mut self, why: String, hint: String, retry_after_ms: u64) -> Result<(), ClientError> {
        let url = self.source.take().map(|source| source.url).unwrap_or_default();
        self.client.pool.avoid(&url);
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        tracing::debug!(why, "the stream of a shard broke; opening it again");
        if since.elapsed() > self.client.timeout {
            let tried = vec![Tried { endpoint: url, why }];
            return Err(ClientError::Unreachable { tried, waited: since.elapsed(), answered: true, hint });
        }
        tokio::time::sleep(self.backoff.pause(retry_after_ms)).await;
        Ok(())
    }
}
