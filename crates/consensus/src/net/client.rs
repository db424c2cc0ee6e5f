//! openraft's way to the other coordinators.
//!
//! openraft gives an AppendEntries call one heartbeat interval, the follower's fsync included. A follower whose disk is
//! slower than that would be sent the same entries for ever. So a call that carries entries runs on when openraft gives
//! up waiting, and the retry of the same range gets its answer:
//!
//! ```text
//! append(P, E1..E5) ──send──►            cancelled after 100 ms; the request stays in flight
//! append(P, E1..E7) ──same P, E5 within──► waits for the first one ──Success──► PartialSuccess(E5) ──► E6.. are sent
//! append(P', ..)    ──another range──►     the first one is forgotten; Raft bears its late arrival
//! ```
//! Calls without entries are never answered from an older one: a quorum round has to have begun after it was asked for
//! (invariant 27).

#![expect(clippy::result_large_err, reason = "openraft's error types are what its traits return")]

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, PayloadTooLarge, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot};
use tokio::sync::oneshot;
use tonic::{Code, Request, Status};

use super::convert;
use super::peer::{Peer, Peers};
use super::send_snapshot::send_snapshot;
use crate::disk::LogMark;
use crate::types::{TypeConfig, Vote, mark};

/// How long a request with entries may stay in flight: a disk this slow has failed.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(5);
/// An unreachable peer is tried again soon: a restarted coordinator should not wait for its log.
const BACK_OFF: Duration = Duration::from_millis(200);

type AppendResult = Result<AppendEntriesResponse<u64>, Status>;
type RpcError = RPCError<u64, BasicNode, RaftError<u64>>;

#[derive(Clone)]
pub(crate) struct Network {
    peers: Peers,
}

impl Network {
    pub(crate) fn new(peers: Peers) -> Self {
        Self { peers }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> PeerClient {
        PeerClient { target, peer: self.peers.get(target, &node.addr), in_flight: None }
    }
}

/// A request with entries that runs on by itself.
struct InFlight {
    vote: Vote,
    previous: Option<LogMark>,
    last: LogMark,
    answer: oneshot::Receiver<AppendResult>,
}

impl InFlight {
    /// Whether `rpc` asks for the same range, or one that begins with it.
    fn answers(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> bool {
        self.vote == rpc.vote
            && self.previous == rpc.prev_log_id.as_ref().map(mark)
            && rpc.entries.iter().any(|entry| mark(&entry.log_id) == self.last)
    }
}

pub(crate) struct PeerClient {
    target: u64,
    peer: Option<Arc<Peer>>,
    in_flight: Option<InFlight>,
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("coordinator c{0} has no usable address")]
    NoAddress(u64),
    #[error("c{0} lost entries that it had acknowledged: remove it and let it join again under a new id")]
    LostEntries(u64),
    #[error("the call was dropped")]
    Dropped,
    #[error("{0}")]
    Status(String),
}

fn unreachable(err: &CallError) -> RpcError {
    RPCError::Unreachable(Unreachable::new(err))
}

/// Whether no connection could be made, so that waiting a little is right.
fn is_connect_failure(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.source().is_some()
}

fn rpc_error(status: &Status, entries: usize) -> RpcError {
    let err = CallError::Status(format!("{:?}: {}", status.code(), status.message()));
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted if entries > 1 => {
            RPCError::PayloadTooLarge(PayloadTooLarge::new_entries_hint(entries as u64 / 2))
        }
        // Another cluster or another id answers there: no sooner retry will change that.
        Code::FailedPrecondition => unreachable(&err),
        _ if is_connect_failure(status) => unreachable(&err),
        _ => RPCError::Network(NetworkError::new(&err)),
    }
}

async fn call_append(
    peer: &Peer,
    rpc: &AppendEntriesRequest<TypeConfig>,
    deadline: Duration,
) -> AppendResult {
    let mut request = Request::new(convert::append_to_pb(rpc, peer.route.clone()));
    request.set_timeout(deadline);
    let response = peer.control.clone().append(request).await?.into_inner();
    // A build that does not say it counts as having room: at worst an election a minute is for nothing.
    peer.said_room(!response.is_short_of_room);
    convert::appended_from_pb(response).map_err(|err| Status::internal(err.to_string()))
}

impl PeerClient {
    fn peer(&self) -> Result<&Arc<Peer>, CallError> {
        self.peer.as_ref().ok_or(CallError::NoAddress(self.target))
    }

    /// Sends entries so that the request outlives a cancelled wait, or joins the wait for one that is in flight.
    async fn append_with_entries(&mut self, rpc: AppendEntriesRequest<TypeConfig>) -> AppendResult {
        let last = rpc.entries.last().map(|entry| mark(&entry.log_id)).unwrap_or_default();
        if !self.in_flight.as_ref().is_some_and(|in_flight| in_flight.answers(&rpc)) {
            let (tx, answer) = oneshot::channel();
            let (vote, previous) = (rpc.vote, rpc.prev_log_id.as_ref().map(mark));
            let peer = Arc::clone(self.peer().map_err(|err| Status::failed_precondition(err.to_string()))?);
            tokio::spawn(async move {
                let called =
                    tokio::time::timeout(IN_FLIGHT_MAX, call_append(&peer, &rpc, IN_FLIGHT_MAX)).await;
                let answer = called.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
                // The stream may have moved on; then nobody waits.
                let _ = tx.send(answer);
            });
            self.in_flight = Some(InFlight { vote, previous, last, answer });
        }
        let in_flight = self.in_flight.as_mut().expect("just set");
        // Cancelled here by openraft's deadline: `in_flight` stays for the retry.
        let answer = (&mut in_flight.answer).await;
        let sent_last = in_flight.last;
        self.in_flight = None;
        match answer.map_err(|_| Status::internal(CallError::Dropped.to_string()))?? {
            AppendEntriesResponse::Success if sent_last != last => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(crate::types::log_id(sent_last))))
            }
            other => Ok(other),
        }
    }

    /// A follower cannot un-have an entry. openraft takes that for its own bug and panics, so one broken follower would
    /// stop leader after leader; instead it counts as unreachable, and the log says what to do.
    fn guard(
        &self,
        rpc: &Asked,
        response: AppendEntriesResponse<u64>,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let peer = self.peer().map_err(|err| unreachable(&err))?;
        match &response {
            AppendEntriesResponse::Success => peer.has(rpc.term, rpc.last.or(rpc.previous)),
            AppendEntriesResponse::PartialSuccess(upto) => peer.has(rpc.term, upto.as_ref().map(mark)),
            AppendEntriesResponse::Conflict if peer.had(rpc.term, rpc.previous) => {
                let err = CallError::LostEntries(self.target);
                tracing::error!(coordinator = self.target, term = rpc.term, %err, "a member lost its log");
                return Err(unreachable(&err));
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => {}
        }
        Ok(response)
    }
}

/// What the guard needs to know of a request after it was sent away.
struct Asked {
    term: u64,
    previous: Option<LogMark>,
    last: Option<LogMark>,
    entries: usize,
}

impl RaftNetwork<TypeConfig> for PeerClient {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let asked = Asked {
            term: rpc.vote.leader_id.term,
            previous: rpc.prev_log_id.as_ref().map(mark),
            last: rpc.entries.last().map(|entry| mark(&entry.log_id)),
            entries: rpc.entries.len(),
        };
        let answered = if asked.entries == 0 {
            let peer = self.peer().map_err(|err| unreachable(&err))?;
            call_append(peer, &rpc, option.hard_ttl()).await
        } else {
            self.append_with_entries(rpc).await
        };
        let response = answered.map_err(|status| rpc_error(&status, asked.entries))?;
        self.guard(&asked, response)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let peer = self.peer().map_err(|err| unreachable(&err))?;
        let mut request = Request::new(convert::vote_request_to_pb(&rpc, peer.route.clone()));
        request.set_timeout(option.hard_ttl());
        let response = peer.control.clone().vote(request).await.map_err(|status| rpc_error(&status, 0))?;
        convert::voted_from_pb(response.into_inner())
            .map_err(|err| RPCError::Network(NetworkError::new(&err)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let peer = match self.peer() {
            Ok(peer) => Arc::clone(peer),
            Err(err) => return Err(StreamingError::Unreachable(Unreachable::new(&err))),
        };
        let sent = send_snapshot(&peer, vote, &snapshot, option.hard_ttl());
        let sent = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = sent => sent,
        };
        match sent {
            Ok(answered) => {
                if answered == vote {
                    peer.has(vote.leader_id.term, snapshot.meta.last_log_id.as_ref().map(mark));
                }
                Ok(SnapshotResponse::new(answered))
            }
            Err(status) => {
                let err = CallError::Status(format!("{:?}: {}", status.code(), status.message()));
                Err(StreamingError::Unreachable(Unreachable::from(AnyError::new(&err))))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACK_OFF))
    }
}
