//! The coordinators that this agent knows, and a channel to each.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_client::channel::connect_lazy;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::node_service_client::NodeServiceClient;
use outlast_proto::status::Failure;
use parking_lot::Mutex;
use tonic::Request;
use tonic::transport::Channel;

/// Addresses kept: a cluster has five at most, and configured names may differ from learnt ones.
const KNOWN_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Coordinators {
    configured: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    learnt: Vec<String>,
    channels: BTreeMap<String, Channel>,
    /// The one that has the session: asked first, and not used for hedging.
    session: Option<String>,
}

impl Coordinators {
    pub(crate) fn new(configured: Vec<String>) -> Self {
        Self { configured, inner: Mutex::default() }
    }

    /// The whole cluster, as a welcome names it.
    pub(crate) fn learn(&self, mut all: Vec<String>) {
        all.truncate(KNOWN_MAX);
        let mut inner = self.inner.lock();
        inner.learnt = all;
        let Inner { learnt, channels, .. } = &mut *inner;
        channels.retain(|address, _| learnt.contains(address) || self.configured.contains(address));
    }

    pub(crate) fn set_session(&self, address: Option<String>) {
        self.inner.lock().session = address;
    }

    /// All addresses in a random order, so that agents spread; the learnt ones first, `last` at the end.
    pub(crate) fn shuffled(&self, last: Option<&str>) -> Vec<String> {
        let mut learnt = self.inner.lock().learnt.clone();
        shuffle(&mut learnt);
        let mut configured: Vec<_> =
            self.configured.iter().filter(|a| !learnt.contains(a)).cloned().collect();
        shuffle(&mut configured);
        learnt.extend(configured);
        learnt.sort_by_key(|address| Some(address.as_str()) == last);
        learnt
    }

    /// # Errors
    /// The address is none.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Failure> {
        let mut inner = self.inner.lock();
        if let Some(channel) = inner.channels.get(address) {
            return Ok(channel.clone());
        }
        let rejected = |err: outlast_client::channel::AddressError| Failure::Rejected {
            reason: err.to_string(),
            hint: "mend the agent's `coordinators`".to_owned(),
        };
        let channel = connect_lazy(address).map_err(rejected)?;
        inner.channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Sends a heartbeat to a coordinator other than the session's, where there is one.
    ///
    /// # Errors
    /// Nobody answered, or the registration is over (`Fenced`).
    pub(crate) async fn hedge(
        &self,
        request: pb::HeartbeatRequest,
        deadline: Duration,
    ) -> Result<pb::LeaseGrant, Failure> {
        let session = self.inner.lock().session.clone();
        let all = self.shuffled(session.as_deref());
        let second = all.first().filter(|first| Some(*first) != session.as_ref() || all.len() == 1);
        let address = second.ok_or_else(|| unreachable("no coordinator is known"))?;
        let mut client = NodeServiceClient::new(self.channel(address)?);
        let call = client.heartbeat(timed(request, deadline));
        answer(tokio::time::timeout(deadline, call).await)
    }

    /// Opens a checkpoint through whichever coordinator answers, within the deadline. Each try asks for a new request: the
    /// registration may change meanwhile.
    ///
    /// # Errors
    /// The refusal (`Fenced` for an attempt that is over), or the last failure when time has run out.
    /// `None`: the step is skipped, by all ranks.
    pub(crate) async fn open_checkpoint(
        &self,
        request: impl Fn() -> pb::OpenCheckpointRequest,
        within: Duration,
    ) -> Result<Option<String>, Failure> {
        let open = |mut client: NodeServiceClient<Channel>| {
            let request = timed(request(), CALL_TRY);
            async move { client.open_checkpoint(request).await }
        };
        let opened = self.through_any(within, open).await?;
        Ok((!opened.skipped).then_some(opened.checkpoint))
    }

    /// What became of a checkpoint, as of now.
    ///
    /// # Errors
    /// The last failure when time has run out.
    pub(crate) async fn checkpoint_fate(
        &self,
        request: pb::GetCheckpointFateRequest,
        within: Duration,
    ) -> Result<pb::CheckpointUpdate, Failure> {
        let ask = |mut client: NodeServiceClient<Channel>| {
            let request = timed(request.clone(), CALL_TRY);
            async move { client.get_checkpoint_fate(request).await }
        };
        self.through_any(within, ask).await
    }

    /// Asks one coordinator after the other, the session's first, until one answers.
    async fn through_any<T, F>(
        &self,
        within: Duration,
        call: impl Fn(NodeServiceClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let began = tokio::time::Instant::now();
        let mut until = began + within;
        let mut last = unreachable("no coordinator is known");
        while tokio::time::Instant::now() < until {
            for address in self.session_first() {
                let client = NodeServiceClient::new(self.channel(&address)?);
                match answer(tokio::time::timeout(CALL_TRY, call(client)).await) {
                    Ok(answered) => return Ok(answered),
                    // Denied: it is of a cluster that is over.
                    Err(failure) if failure.is_retryable() || matches!(failure, Failure::Denied { .. }) => {
                        last = failure;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            if matches!(last, Failure::Exhausted { .. }) {
                // The log answers; what is asked for has to wait its turn.
                until = (tokio::time::Instant::now() + within).min(began + TURN_WITHIN);
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
        Err(last)
    }

    fn session_first(&self) -> Vec<String> {
        let session = self.inner.lock().session.clone();
        let mut all = self.shuffled(None);
        all.sort_by_key(|address| Some(address) != session.as_ref());
        all
    }
}

/// One commit or confirmed read of the log, with an election in between left to the next try.
const CALL_TRY: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How long a checkpoint waits for those before it, where it may not be skipped.
const TURN_WITHIN: Duration = Duration::from_secs(600);

fn unreachable(reason: &str) -> Failure {
    Failure::Unavailable { reason: reason.to_owned(), hint: String::new(), retry_after_ms: 0 }
}

pub(crate) fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// What came of a call with a deadline on our side too: the other side's clock may be stopped.
pub(crate) fn answer<T>(
    result: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
) -> Result<T, Failure> {
    match result {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::from_status(&status)),
        Err(_) => Err(unreachable("no answer in time")),
    }
}

/// A random number; the agent's ids and orders need no more than this.
pub(crate) fn random() -> u64 {
    outlast_host::random::number().expect("the kernel gives random numbers once it has booted")
}

fn shuffle(items: &mut [String]) {
    for i in (1..items.len()).rev() {
        items.swap(i, (random() % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coordinator_has_its_turn_and_the_last_one_comes_last() {
        let coordinators = Coordinators::new(vec!["a:1".into(), "b:1".into()]);
        coordinators.learn(vec!["b:1".into(), "c:1".into()]);
        for _ in 0..20 {
            let order = coordinators.shuffled(Some("b:1"));
            assert_eq!(order.len(), 3);
            assert_eq!(order[2], "b:1");
            assert_eq!(order[0], "c:1", "learnt ones come before configured ones");
        }
    }
}
