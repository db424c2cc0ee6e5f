//! Wire types to openraft's and back. Wire types stop here.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use outlast_proto::raft::v1 as pb;

use crate::ballot::Ballot;
use crate::disk::{LogMark, Record};
use crate::types::{Entry, LogId, PayloadError, TypeConfig, Vote, entry_of, log_id, mark, record_of};

#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("field {field} is missing")]
    Missing { field: &'static str },
    #[error("an entry does not decode")]
    Payload(#[from] PayloadError),
}

fn required<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { field })
}

pub(crate) fn log_id_to_pb(id: &LogId) -> pb::LogId {
    let LogMark { term, index } = mark(id);
    pb::LogId { term, index }
}

pub(crate) fn log_id_from_pb(id: pb::LogId) -> LogId {
    let pb::LogId { term, index } = id;
    log_id(LogMark { term, index })
}

pub(crate) fn vote_to_pb(vote: &Vote) -> pb::Ballot {
    let Ballot { term, voted_for, committed } = Ballot::from(vote);
    pb::Ballot { term, voted_for, committed }
}

pub(crate) fn vote_from_pb(vote: Option<pb::Ballot>) -> Result<Vote, WireError> {
    let pb::Ballot { term, voted_for, committed } = required(vote, "vote")?;
    Ok(Ballot { term, voted_for, committed }.into())
}

pub(crate) fn append_to_pb(rpc: &AppendEntriesRequest<TypeConfig>, route: pb::Route) -> pb::AppendRequest {
    let entry = |entry: &Entry| {
        let Record { mark: LogMark { term, index }, payload } = record_of(entry);
        pb::Entry { id: Some(pb::LogId { term, index }), payload: payload.into() }
    };
    pb::AppendRequest {
        route: Some(route),
        vote: Some(vote_to_pb(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(log_id_to_pb),
        entries: rpc.entries.iter().map(entry).collect(),
        leader_commit: rpc.leader_commit.as_ref().map(log_id_to_pb),
    }
}

pub(crate) fn append_from_pb(
    request: pb::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let pb::AppendRequest { route: _, vote, previous, entries, leader_commit } = request;
    let entry = |entry: pb::Entry| -> Result<Entry, WireError> {
        let pb::Entry { id, payload } = entry;
        let pb::LogId { term, index } = required(id, "entries.id")?;
        Ok(entry_of(&Record { mark: LogMark { term, index }, payload: payload.into() })?)
    };
    Ok(AppendEntriesRequest {
        vote: vote_from_pb(vote)?,
        prev_log_id: previous.map(log_id_from_pb),
        entries: entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        leader_commit: leader_commit.map(log_id_from_pb),
    })
}

pub(crate) fn appended_to_pb(
    response: &AppendEntriesResponse<u64>,
    is_short_of_room: bool,
) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Some(Outcome::Success(pb::Success {})),
        // Where nothing was taken, no outcome at all.
        AppendEntriesResponse::PartialSuccess(upto) => {
            upto.as_ref().map(|upto| Outcome::Partial(log_id_to_pb(upto)))
        }
        AppendEntriesResponse::Conflict => Some(Outcome::Conflict(pb::Conflict {})),
        AppendEntriesResponse::HigherVote(vote) => Some(Outcome::HigherVote(vote_to_pb(vote))),
    };
    pb::AppendResponse { outcome, is_short_of_room }
}

pub(crate) fn appended_from_pb(
    response: pb::AppendResponse,
) -> Result<AppendEntriesResponse<u64>, WireError> {
    use pb::append_response::Outcome;
    Ok(match response.outcome {
        None => AppendEntriesResponse::PartialSuccess(None),
        Some(Outcome::Success(pb::Success {})) => AppendEntriesResponse::Success,
        Some(Outcome::Partial(upto)) => AppendEntriesResponse::PartialSuccess(Some(log_id_from_pb(upto))),
        Some(Outcome::Conflict(pb::Conflict {})) => AppendEntriesResponse::Conflict,
        Some(Outcome::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote_from_pb(Some(vote))?),
    })
}

pub(crate) fn vote_request_to_pb(rpc: &VoteRequest<u64>, route: pb::Route) -> pb::VoteRequest {
    let last_log = rpc.last_log_id.as_ref().map(log_id_to_pb);
    pb::VoteRequest { route: Some(route), vote: Some(vote_to_pb(&rpc.vote)), last_log }
}

pub(crate) fn vote_request_from_pb(request: pb::VoteRequest) -> Result<VoteRequest<u64>, WireError> {
    let pb::VoteRequest { route: _, vote, last_log } = request;
    Ok(VoteRequest { vote: vote_from_pb(vote)?, last_log_id: last_log.map(log_id_from_pb) })
}

pub(crate) fn voted_to_pb(response: &VoteResponse<u64>) -> pb::VoteResponse {
    let VoteResponse { vote, vote_granted, last_log_id } = response;
    pb::VoteResponse {
        vote: Some(vote_to_pb(vote)),
        granted: *vote_granted,
        last_log: last_log_id.as_ref().map(log_id_to_pb),
    }
}

pub(crate) fn voted_from_pb(response: pb::VoteResponse) -> Result<VoteResponse<u64>, WireError> {
    let pb::VoteResponse { vote, granted, last_log } = response;
    Ok(VoteResponse {
        vote: vote_from_pb(vote)?,
        vote_granted: granted,
        last_log_id: last_log.map(log_id_from_pb),
    })
}
