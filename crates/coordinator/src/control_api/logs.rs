//! A job's lines: one reader for each rank, merged as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{AttemptId, GroupId, JobId, JobKind};
use tokio::sync::mpsc;
use tonic::Status;

use super::log_reader::RankReader;
use super::{ControlHandler, exhausted, find_job, rejected};
use crate::member::Member;

/// Pages that wait for a slow reader; the agents wait with them.
const PAGES_MAX: usize = 16;
/// Ranks that are read at a time where nobody follows; followed ones are all open.
const READERS_MAX: usize = 32;
/// Of each rank: they are held in memory until the newest is known.
const TAIL_MAX: u32 = 10_000;

pub(crate) type LineStream = mpsc::Receiver<Result<pb::JobLogsResponse, Status>>;

/// What all readers of one call share.
pub(super) struct LogCall {
    pub(super) member: Arc<Member>,
    pub(super) job: JobId,
    pub(super) follow: bool,
    pub(super) tail: u32,
    /// Only this attempt number; 0: all.
    pub(super) only: u64,
    pub(super) pages: mpsc::Sender<Result<pb::JobLogsResponse, Status>>,
}

/// Where a reader goes on.
pub(super) type Cursor = (AttemptId, u64);

impl ControlHandler {
    pub(crate) async fn job_logs(&self, request: pb::JobLogsRequest) -> Result<LineStream, Failure> {
        let member = self.seat.member()?;
        let permit =
            self.log_streams.clone().try_acquire_owned().map_err(|_| exhausted("too many log streams"))?;
        if request.tail > TAIL_MAX {
            return Err(rejected(
                format!("{} lines from the end are too many", request.tail),
                "ask for 10000, or for all",
            ));
        }
        member.confirm_read().await?;
        let (job, places) = member.state(|state| {
            let job = find_job(state, &request.job)?;
            Ok::<_, Failure>((job.id, places(job.id, job.spec.kind, job.spec.shape(), &request.ranks)))
        })?;
        if places.is_empty() {
            return Err(rejected("the job has none of these ranks", "`outlast job show JOB` lists them"));
        }
        let cursors = read_cursors(&request.cursors)?;
        let (pages, stream) = mpsc::channel(PAGES_MAX);
        let call = Arc::new(LogCall {
            member,
            job,
            follow: request.follow,
            tail: request.tail,
            only: request.attempt,
            pages,
        });
        tokio::spawn(async move {
            read_all(call, places, cursors).await;
            drop(permit);
        });
        Ok(stream)
    }
}

/// (group, rank) of everything that is wanted. In jobs whose groups have one worker, the group's index is the rank that
/// people count.
fn places(job: JobId, kind: JobKind, (groups, ranks): (u32, u32), wanted: &[u32]) -> Vec<(GroupId, u32)> {
    let is_wanted = |rank: u32| wanted.is_empty() || wanted.contains(&rank);
    match kind {
        JobKind::Training => {
            (0..ranks).filter(|rank| is_wanted(*rank)).map(|rank| (GroupId { job, index: 0 }, rank)).collect()
        }
        JobKind::Service | JobKind::Batch => {
            (0..groups).filter(|index| is_wanted(*index)).map(|index| (GroupId { job, index }, 0)).collect()
        }
    }
}

/// The newest attempt of each place that the client has lines of.
fn read_cursors(cursors: &[pb::LogCursor]) -> Result<BTreeMap<(GroupId, u32), Cursor>, Failure> {
    let mut newest: BTreeMap<(GroupId, u32), Cursor> = BTreeMap::new();
    for cursor in cursors {
        let attempt: AttemptId =
            cursor.attempt.parse().map_err(|error| rejected(error, "send the cursors back as they were"))?;
        let place = (attempt.group, cursor.rank);
        if newest.get(&place).is_none_or(|(known, _)| !known.is_newer_than(&attempt)) {
            newest.insert(place, (attempt, cursor.next_seq));
        }
    }
    Ok(newest)
}

async fn read_all(
    call: Arc<LogCall>,
    places: Vec<(GroupId, u32)>,
    mut cursors: BTreeMap<(GroupId, u32), Cursor>,
) {
    let at_a_time = if call.follow { places.len() } else { READERS_MAX };
    let closed = call.pages.clone();
    let readers = places.into_iter().map(|place| {
        let cursor = cursors.remove(&place);
        RankReader::new(call.clone(), place, cursor).run()
    });
    let readers: Vec<_> = readers.collect();
    let work = futures::stream::iter(readers).buffer_unordered(at_a_time.max(1)).for_each(|()| async {});
    tokio::select! {
        () = work => {}
        () = closed.closed() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_cursors_the_newest_attempt_counts() {
        let cursor =
            |attempt: &str, next_seq| pb::LogCursor { attempt: attempt.to_owned(), rank: 1, next_seq };
        let read = read_cursors(&[cursor("j1/0@1.2", 7), cursor("j1/0@1.1", 90), cursor("j1/0@1.3", 2)])
            .expect("valid");
        let place = (GroupId { job: JobId(1), index: 0 }, 1);
        assert_eq!(read[&place], ("j1/0@1.3".parse().expect("valid"), 2));
    }

    #[test]
    fn replicas_are_counted_like_ranks() {
        let job = JobId(3);
        assert_eq!(places(job, JobKind::Training, (1, 4), &[2]), vec![(GroupId { job, index: 0 }, 2)]);
        assert_eq!(places(job, JobKind::Service, (4, 1), &[2]), vec![(GroupId { job, index: 2 }, 0)]);
        assert_eq!(places(job, JobKind::Batch, (3, 1), &[]).len(), 3);
    }
}
