//! One call: tries at several coordinators until one answers, a final answer comes, or the time is over.
//!
//! ```text
//!   start ──> try at the next coordinator ──ok──────────> answer
//!               │        │          └─final refusal─────> error
//!               │        └─retryable──> pause ──> next try
//!               └─silent for `hedge`──> next try beside it; the first answer wins
//!   total time over ────────────────────────────────────> Unreachable
//! ```

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::backoff::Backoff;
use crate::budget::Budget;
use crate::error::Verdict;
use crate::pool::{Endpoint, Pool};
use crate::{ClientError, Tried};

/// Enough to pass two hung coordinators of five.
const IN_FLIGHT_MAX: usize = 3;
/// A bound beside the deadline, should pauses ever be too short.
const TRIES_MAX: usize = 500;
/// A server that says that it is broken may be one of three; three times in a row is the cluster.
const BROKEN_MAX: usize = 3;

/// Sends one message to one coordinator.
pub(crate) type Send<M, T> =
    fn(ControlServiceClient<Channel>, Request<M>) -> BoxFuture<'static, Result<Response<T>, Status>>;

/// The answer, and who gave it.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    pub(crate) endpoint: Endpoint,
}

type Outcome<T> = (Endpoint, Result<Response<T>, Status>);

pub(crate) struct Race<'a, M, T> {
    pool: &'a Pool,
    budget: Budget,
    message: M,
    send: Send<M, T>,
    started_at: Instant,
    tries: FuturesUnordered<BoxFuture<'static, Outcome<T>>>,
    tries_started: usize,
    /// Counts the endpoints looked at.
    turn: usize,
    /// Where a try is in flight.
    waiting_for: Vec<String>,
    next_at: Instant,
    backoff: Backoff,
    broken: usize,
    answered: bool,
    hint: String,
    /// The latest reason of each endpoint.
    reasons: BTreeMap<String, String>,
}

impl<'a, M: Clone + std::marker::Send + 'static, T: std::marker::Send + 'static> Race<'a, M, T> {
    pub(crate) fn new(pool: &'a Pool, budget: Budget, message: M, send: Send<M, T>) -> Self {
        // Not the boot clock: nothing is promised by this deadline, it only ends a wait.
        let now = Instant::now();
        Self {
            pool,
            budget,
            message,
            send,
            started_at: now,
            tries: FuturesUnordered::new(),
            tries_started: 0,
            turn: 0,
            waiting_for: Vec::new(),
            next_at: now,
            backoff: Backoff::new(),
            broken: 0,
            answered: false,
            hint: String::new(),
            reasons: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self) -> Result<Answer<T>, ClientError> {
        let deadline = self.started_at + self.budget.total;
        loop {
            tokio::select! {
                biased;
                Some(outcome) = self.tries.next() => {
                    if let Some(end) = self.settle(outcome) {
                        return end;
                    }
                }
                () = sleep_until(deadline) => return Err(self.over()),
                () = sleep_until(self.next_at), if self.may_start() => self.start()?,
            }
        }
    }

    fn may_start(&self) -> bool {
        let hedging = self.budget.hedge.is_some() && self.pool.len() > 1;
        let room = if hedging { IN_FLIGHT_MAX.min(self.pool.len()) } else { 1 };
        self.tries.len() < room && self.tries_started < TRIES_MAX
    }

    /// The next coordinator that no try is waiting for.
    fn next_endpoint(&mut self) -> Result<Option<Endpoint>, ClientError> {
        for _ in 0..self.pool.len() {
            let endpoint = self.pool.pick(self.turn)?;
            self.turn += 1;
            if !self.waiting_for.contains(&endpoint.url) {
                return Ok(Some(endpoint));
            }
        }
        Ok(None)
    }

    fn start(&mut self) -> Result<(), ClientError> {
        let Some(endpoint) = self.next_endpoint()? else {
            // One of those in flight ends by then, and says when to go on.
            self.next_at = Instant::now() + self.budget.each;
            return Ok(());
        };
        self.tries_started += 1;
        self.waiting_for.push(endpoint.url.clone());
        self.next_at = Instant::now() + self.budget.hedge.unwrap_or_default();
        let mut request = Request::new(self.message.clone());
        if self.budget.tell_server {
            request.set_timeout(self.budget.each);
        }
        let answer = (self.send)(endpoint.client(), request);
        let each = self.budget.each;
        self.tries.push(Box::pin(async move {
            let outcome = timeout(each, answer).await;
            let silent =
                |_| Err(Status::unavailable(format!("no answer within {:.1} s", each.as_secs_f64())));
            (endpoint, outcome.unwrap_or_else(silent))
        }));
        Ok(())
    }

    /// What one try's end means: `Some` ends the call.
    fn settle(&mut self, (endpoint, outcome): Outcome<T>) -> Option<Result<Answer<T>, ClientError>> {
        self.waiting_for.retain(|url| *url != endpoint.url);
        let status = match outcome {
            Ok(response) => {
                self.pool.prefer(&endpoint.url);
                return Some(Ok(Answer { value: response.into_inner(), endpoint }));
            }
            Err(status) => status,
        };
        match Verdict::from(&status) {
            Verdict::Final(error) => Some(Err(error)),
            Verdict::Again { why, hint, retry_after_ms, answered } => {
                tracing::debug!(endpoint = %endpoint.url, why, retry_after_ms, "asking again");
                self.answered |= answered;
                if !hint.is_empty() {
                    self.hint = hint;
                }
                self.again(endpoint, why, retry_after_ms);
                None
            }
            Verdict::Broken { why } => {
                self.broken += 1;
                self.answered = true;
                self.again(endpoint, why.clone(), 0);
                (self.broken >= BROKEN_MAX).then_some(Err(ClientError::Failed { reason: why }))
            }
        }
    }

    fn again(&mut self, endpoint: Endpoint, why: String, retry_after_ms: u64) {
        self.reasons.insert(endpoint.url, why);
        // Everyone is asked once without a pause, unless the server asked for one.
        let unasked = self.tries_started < self.pool.len() && retry_after_ms == 0;
        let pause = if unasked { std::time::Duration::ZERO } else { self.backoff.pause(retry_after_ms) };
        self.next_at = Instant::now() + pause;
    }

    fn over(self) -> ClientError {
        let silent = || "no answer yet".to_owned();
        let mut tried: Vec<_> = self
            .pool
            .urls()
            .into_iter()
            .map(|endpoint| Tried {
                why: self.reasons.get(&endpoint).cloned().unwrap_or_else(silent),
                endpoint,
            })
            .collect();
        tried.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        let waited = self.started_at.elapsed();
        ClientError::Unreachable { tried, waited, answered: self.answered, hint: self.hint }
    }
}
