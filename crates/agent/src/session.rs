//! The stream to one coordinator at a time. Owns the connection; decides nothing: what arrives goes to the loop, what the
//! loop says goes out.
//!
//! ```text
//!  pick ──► connect ──► Hello ──► Welcome ──► messages both ways ──► closed, left or refused ──► back-off ──► pick another
//!             │           └─► Succeeded (its cluster goes on from ours) ──► the same again       │
//!             └────────── not there, or no answer: the next one; all were asked ─────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_proto::node::v1::node_service_client::NodeServiceClient;
use outlast_types::RegistrationId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::coordinators::{Coordinators, random};
use crate::event::Event;

/// Messages waiting to leave: a heartbeat each half second and a few observations; more means that the stream is stuck.
const OUTGOING_MAX: usize = 64;
/// Registration is a commit of the log. Longer would cost the lease if this coordinator has lost its leader; another one
/// is asked instead.
const WELCOME_WITHIN: Duration = Duration::from_secs(2);
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The loop's end of an open session.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: u64,
    pub(crate) coordinator: String,
    /// The registration that its Hello named.
    pub(crate) registration: RegistrationId,
    outgoing: mpsc::Sender<pb::AgentMessage>,
    leave: CancellationToken,
}

impl Link {
    /// Whether there was room. What is dropped is said again: heartbeats and observations repeat.
    pub(crate) fn send(&self, message: Up) -> bool {
        self.outgoing.try_send(pb::AgentMessage { message: Some(message) }).is_ok()
    }

    /// Ends the session; another coordinator is tried.
    pub(crate) fn leave(&self) {
        self.leave.cancel();
    }
}

#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// What to introduce ourselves with. `None`: not now.
    HelloWanted(oneshot::Sender<Option<pb::Hello>>),
    Welcomed(Link, pb::Welcome),
    /// From the session with this number.
    Message(u64, Down),
    /// The coordinator's cluster goes on from ours.
    Succeeded(pb::Succeeded),
    /// Of this registration.
    Refused(RegistrationId, pb::Refused),
    Closed {
        number: u64,
        reason: String,
    },
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("it could not be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it did not welcome us within {} s", WELCOME_WITHIN.as_secs())]
    NoWelcome,
    #[error("it ended the stream")]
    Closed,
    #[error("the stream broke: {0}")]
    Broken(tonic::Status),
    #[error("it refused us: {0}")]
    Refused(String),
    #[error("its cluster goes on from ours")]
    Succeeded,
    #[error("the agent left it")]
    Left,
    #[error("the agent is not ready for a session")]
    NotNow,
}

impl SessionEnd {
    /// Nothing was said about this agent: another coordinator may do better at once.
    fn is_somebody_elses_chance(&self) -> bool {
        matches!(self, SessionEnd::Unreachable(_) | SessionEnd::Broken(_))
    }
}

pub(crate) struct Session {
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Session {
    /// Runs until the shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let work = self.keep_connected();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    async fn keep_connected(&self) {
        let mut number = 0;
        let mut last: Option<String> = None;
        let mut backoff = BACKOFF_MIN;
        // Whose cluster goes on from ours is asked again at once: a lease of the old time may be running out.
        let mut successor: Option<String> = None;
        loop {
            let order = successor.take().map(|address| vec![address]);
            let order = order.unwrap_or_else(|| self.coordinators.shuffled(last.as_deref()));
            assert!(!order.is_empty(), "the configuration names at least one");
            for address in order {
                number += 1;
                let mut welcomed = false;
                let end = self.one(number, &address, &mut welcomed).await;
                self.coordinators.set_session(None);
                tracing::debug!(coordinator = %address, reason = %end, "session over");
                last = Some(address.clone());
                if welcomed {
                    let closed = SessionEvent::Closed { number, reason: end.to_string() };
                    self.tell(closed).await;
                }
                let follows = matches!(end, SessionEnd::Succeeded);
                if welcomed || follows {
                    backoff = BACKOFF_MIN;
                    successor = follows.then_some(address);
                }
                // The pause is for the round: of three coordinators two may be gone, and the third is wanted soon.
                if welcomed || !end.is_somebody_elses_chance() {
                    break;
                }
            }
            let jitter = Duration::from_millis(random() % (backoff.as_millis() as u64 / 2 + 1));
            tokio::time::sleep(backoff / 2 + jitter).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn one(&self, number: u64, address: &str, welcomed: &mut bool) -> SessionEnd {
        let Some(hello) = self.hello().await else { return SessionEnd::NotNow };
        let registration =
            RegistrationId(hello.registration.as_ref().map_or(0, |registration| registration.registration));
        let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
        let first = pb::AgentMessage { message: Some(Up::Hello(hello)) };
        outgoing.try_send(first).expect("a new queue has room");
        let mut incoming = match self.open(address, queue).await {
            Ok(incoming) => incoming,
            Err(end) => return end,
        };
        let welcome = match timeout(WELCOME_WITHIN, incoming.message()).await {
            Err(_) => return SessionEnd::NoWelcome,
            Ok(Ok(Some(pb::CoordinatorMessage { message: Some(Down::Welcome(welcome)) }))) => welcome,
            Ok(Ok(Some(pb::CoordinatorMessage { message: Some(Down::Refused(refused)) }))) => {
                let reason = refused.reason.clone();
                self.tell(SessionEvent::Refused(registration, refused)).await;
                return SessionEnd::Refused(reason);
            }
            Ok(Ok(Some(pb::CoordinatorMessage { message: Some(Down::Succeeded(succeeded)) }))) => {
                self.tell(SessionEvent::Succeeded(succeeded)).await;
                return SessionEnd::Succeeded;
            }
            Ok(Ok(_)) => return SessionEnd::Closed,
            Ok(Err(status)) => return SessionEnd::Broken(status),
        };
        *welcomed = true;
        self.coordinators.set_session(Some(address.to_owned()));
        let leave = CancellationToken::new();
        let link =
            Link { number, coordinator: address.to_owned(), registration, outgoing, leave: leave.clone() };
        self.tell(SessionEvent::Welcomed(link, welcome)).await;
        tokio::select! {
            () = leave.cancelled() => SessionEnd::Left,
            end = self.receive(number, registration, incoming) => end,
        }
    }

    async fn open(
        &self,
        address: &str,
        queue: mpsc::Receiver<pb::AgentMessage>,
    ) -> Result<Streaming<pb::CoordinatorMessage>, SessionEnd> {
        let channel =
            self.coordinators.channel(address).map_err(|err| SessionEnd::Unreachable(err.into()))?;
        let mut client = NodeServiceClient::new(channel);
        let call = client.session(ReceiverStream::new(queue));
        match timeout(CONNECT_WITHIN + WELCOME_WITHIN, call).await {
            Err(elapsed) => Err(SessionEnd::Unreachable(elapsed.into())),
            Ok(Err(status)) => Err(SessionEnd::Broken(status)),
            Ok(Ok(response)) => Ok(response.into_inner()),
        }
    }

    async fn receive(
        &self,
        number: u64,
        registration: RegistrationId,
        mut incoming: Streaming<pb::CoordinatorMessage>,
    ) -> SessionEnd {
        loop {
            match incoming.message().await {
                Ok(Some(pb::CoordinatorMessage { message: Some(Down::Refused(refused)) })) => {
                    let reason = refused.reason.clone();
                    self.tell(SessionEvent::Refused(registration, refused)).await;
                    return SessionEnd::Refused(reason);
                }
                // An empty one is of a newer version: not for us.
                Ok(Some(pb::CoordinatorMessage { message: None })) => {}
                Ok(Some(pb::CoordinatorMessage { message: Some(message) })) => {
                    self.tell(SessionEvent::Message(number, message)).await;
                }
                Ok(None) => return SessionEnd::Closed,
                Err(status) => return SessionEnd::Broken(status),
            }
        }
    }

    async fn hello(&self) -> Option<pb::Hello> {
        let (reply, answer) = oneshot::channel();
        self.tell(SessionEvent::HelloWanted(reply)).await;
        answer.await.ok().flatten()
    }

    /// A closed queue means that the loop is over; the shutdown ends this task too.
    async fn tell(&self, event: SessionEvent) {
        let _ = self.events.send(Event::Session(event)).await;
    }
}
