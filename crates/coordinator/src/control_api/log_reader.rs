//! The lines of one rank through all its attempts: from the node where it ran, and where that is gone, the gap and the
//! last words that the attempt's record kept.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{Assignment, AssignmentPhase, Attempt, NodeCondition};
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::{LogRecord, ReadLogRequest, ReadLogResponse};
use outlast_proto::status::Failure;
use outlast_proto::time::Timestamp;
use outlast_types::{AttemptId, GroupId, NodeId, WallTime};
use tonic::Streaming;

use super::logs::{Cursor, LogCall};
use crate::peers::call;

/// Lines from a record carry numbers from here on: they are not the numbers of the worker's own lines, and a cursor
/// there means that everything about the attempt was said.
const FROM_RECORD: u64 = 1 << 63;
/// Tries of a node that does not answer, where nobody follows. A follower goes on until the node is back or Lost.
const TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
const OPEN_DEADLINE: Duration = Duration::from_secs(3);
/// An agent that follows a silent worker sends nothing; one that reads back must not stop in the middle.
const PAGE_DEADLINE: Duration = Duration::from_secs(20);

/// The reader does not want more.
struct Gone;

pub(super) struct RankReader {
    call: Arc<LogCall>,
    group: GroupId,
    rank: u32,
    /// The attempt that is being read and the next number wanted; older attempts are done.
    at: Option<Cursor>,
}

/// What the state says about the attempt to be read.
struct Target {
    attempt: AttemptId,
    node: NodeId,
    /// `None`: the node is Lost or unknown.
    address: Option<String>,
    has_started: bool,
    is_over: bool,
    last_words: Vec<String>,
    ended_at: Option<WallTime>,
}

enum Next {
    Read(Target),
    /// There may come another one.
    Wait,
    Over,
}

enum Read {
    /// Everything is read that there is.
    Done,
    Failed(Failure),
}

impl RankReader {
    pub(super) fn new(call: Arc<LogCall>, (group, rank): (GroupId, u32), cursor: Option<Cursor>) -> Self {
        Self { call, group, rank, at: cursor }
    }

    pub(super) async fn run(mut self) {
        if self.call.tail > 0 && self.at.is_none() && self.read_tail().await.is_err() {
            return;
        }
        let mut is_begun = self.at.is_some();
        let mut applied = self.call.member.consensus.applied();
        loop {
            applied.mark_unchanged();
            match self.next(is_begun) {
                Next::Read(target) => {
                    let from = if is_begun { self.at.map_or(0, |(_, next)| next) } else { 0 };
                    self.at = Some((target.attempt, from));
                    is_begun = false;
                    if self.read_attempt(target).await.is_err() {
                        return;
                    }
                }
                Next::Wait if self.call.follow => {
                    is_begun = false;
                    // The state tells of a new attempt; the pause is for entries that say nothing about it.
                    let _ = tokio::time::timeout(PAUSE, applied.changed()).await;
                }
                Next::Wait | Next::Over => return,
            }
        }
    }

    /// The attempt to be read: that of the cursor itself, or the one behind it.
    fn next(&self, is_begun: bool) -> Next {
        self.call.member.state(|state| {
            let Some(job) = state.jobs.get(&self.call.job) else { return Next::Over };
            let Some(group) = job.group(self.group.index) else { return Next::Over };
            let is_next = |attempt: &&Attempt| {
                let only = self.call.only == 0 || attempt.id.number == self.call.only;
                only && match self.at {
                    None => true,
                    Some((at, _)) => attempt.id.is_newer_than(&at) || (is_begun && attempt.id == at),
                }
            };
            match group.attempts.iter().find(is_next).and_then(|attempt| self.target(state, attempt)) {
                Some(target) => Next::Read(target),
                None if job.state.is_final() || group.done || (self.call.only > 0 && self.at.is_some()) => {
                    Next::Over
                }
                None => Next::Wait,
            }
        })
    }

    fn target(&self, state: &outlast_control::state::ClusterState, attempt: &Attempt) -> Option<Target> {
        let assignment: &Assignment = attempt.assignment(self.rank)?;
        let node =
            state.nodes.get(&assignment.node).filter(|node| node.condition == NodeCondition::Registered);
        let exit = assignment.exit.as_ref();
        Some(Target {
            attempt: attempt.id,
            node: assignment.node.clone(),
            address: node.map(|node| node.address.clone()),
            has_started: assignment.started_at.is_some() || exit.is_some(),
            is_over: !attempt.is_current()
                || !assignment.is_held()
                || assignment.phase == AssignmentPhase::Exited,
            last_words: exit.map(|exit| exit.last_lines.clone()).unwrap_or_default(),
            ended_at: exit.map(|exit| exit.at),
        })
    }

    /// Reads one attempt to its end, as far as it can be read.
    async fn read_attempt(&mut self, mut target: Target) -> Result<(), Gone> {
        let mut tries = 0;
        loop {
            if self.next_seq() >= FROM_RECORD {
                return Ok(());
            }
            let Some(address) = target.address.clone() else {
                let why = format!("node {} is lost", target.node);
                return self.tell_record(&target, &why).await;
            };
            let failure = match self.read_from(&address, &target).await? {
                Read::Done => return Ok(()),
                Read::Failed(failure) => failure,
            };
            tries += 1;
            let is_missing = matches!(failure, Failure::NotFound { .. });
            if is_missing && !target.has_started {
                if target.is_over || !self.call.follow {
                    return Ok(());
                }
            } else if is_missing || (!self.call.follow && tries >= TRIES_MAX) {
                return self.tell_record(&target, &failure.to_string()).await;
            }
            tokio::time::sleep(PAUSE).await;
            match self.next(true) {
                Next::Read(again) if again.attempt == target.attempt => target = again,
                _ => return self.tell_record(&target, "its record left the history").await,
            }
        }
    }

    fn next_seq(&self) -> u64 {
        self.at.map_or(0, |(_, next)| next)
    }

    async fn open(
        &self,
        address: &str,
        target: &Target,
        tail: u32,
        follow: bool,
    ) -> Result<Streaming<ReadLogResponse>, Failure> {
        let request = ReadLogRequest {
            cluster_id: self.call.member.cluster_id.to_string(),
            attempt: target.attempt.to_string(),
            rank: self.rank,
            from_seq: self.next_seq(),
            follow,
            tail,
        };
        let mut agent = self.call.member.peers.agent(address)?;
        call(OPEN_DEADLINE, agent.read_log(request)).await
    }

    /// Passes on what the node has; `Err`: nobody listens any more.
    async fn read_from(&mut self, address: &str, target: &Target) -> Result<Read, Gone> {
        let mut stream = match self.open(address, target, 0, self.call.follow).await {
            Ok(stream) => stream,
            Err(failure) => return Ok(Read::Failed(failure)),
        };
        loop {
            let page = match next_page(&mut stream, self.call.follow).await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(Read::Done),
                Err(failure) => return Ok(Read::Failed(failure)),
            };
            let end = page.end;
            let lines = self.lines(target.attempt, page.records);
            self.send(lines).await?;
            if end {
                return Ok(Read::Done);
            }
        }
    }

    /// Turns records into lines, and moves the cursor behind them.
    fn lines(&mut self, attempt: AttemptId, records: Vec<LogRecord>) -> Vec<pb::LogLine> {
        if let Some(last) = records.last() {
            self.at = Some((attempt, last.seq + 1));
        }
        let rank = self.rank;
        let line = |record: LogRecord| pb::LogLine {
            attempt: attempt.to_string(),
            rank,
            seq: record.seq,
            at: Some(stamp(record.ts_ns)),
            stream: record.stream,
            text: record.text.into(),
            partial: record.partial,
        };
        records.into_iter().map(line).collect()
    }

    /// The newest lines of all attempts together, oldest first; the cursor is then behind the last of them.
    async fn read_tail(&mut self) -> Result<(), Gone> {
        let targets = self.newest_first();
        let Some(newest) = targets.first().map(|target| target.attempt) else { return Ok(()) };
        let mut left = self.call.tail;
        let mut parts = Vec::new();
        let mut newest_cursor = 0;
        for target in targets {
            self.at = Some((target.attempt, 0));
            let lines = self.tail_of(&target, left).await;
            if target.attempt == newest {
                newest_cursor = self.next_seq();
            }
            left = left.saturating_sub(lines.len() as u32);
            parts.push(lines);
            if left == 0 {
                break;
            }
        }
        self.at = Some((newest, newest_cursor));
        for lines in parts.into_iter().rev() {
            self.send(lines).await?;
        }
        Ok(())
    }

    fn newest_first(&self) -> Vec<Target> {
        self.call.member.state(|state| {
            let Some(group) = state.group(&self.group) else { return Vec::new() };
            let wanted = |attempt: &&Attempt| self.call.only == 0 || attempt.id.number == self.call.only;
            group
                .attempts
                .iter()
                .rev()
                .filter(wanted)
                .filter_map(|attempt| self.target(state, attempt))
                .collect()
        })
    }

    async fn tail_of(&mut self, target: &Target, most: u32) -> Vec<pb::LogLine> {
        let Some(address) = target.address.clone() else {
            return self.record_lines(target, &format!("node {} is lost", target.node));
        };
        let mut stream = match self.open(&address, target, most, false).await {
            Ok(stream) => stream,
            Err(Failure::NotFound { .. }) if !target.has_started => return Vec::new(),
            Err(failure) => return self.record_lines(target, &failure.to_string()),
        };
        let mut lines = Vec::new();
        while let Ok(Some(page)) = next_page(&mut stream, false).await {
            lines.extend(self.lines(target.attempt, page.records));
            if page.end {
                break;
            }
        }
        let over = lines.len().saturating_sub(most as usize);
        lines.split_off(over)
    }

    async fn tell_record(&mut self, target: &Target, why: &str) -> Result<(), Gone> {
        let lines = self.record_lines(target, why);
        self.send(lines).await
    }

    /// The gap, and the last words that the log of the cluster kept.
    fn record_lines(&mut self, target: &Target, why: &str) -> Vec<pb::LogLine> {
        let from = self.next_seq();
        self.at = Some((target.attempt, FROM_RECORD));
        if !target.has_started && target.last_words.is_empty() {
            return Vec::new();
        }
        let rest = if from == 0 { "its lines".to_owned() } else { format!("its lines from {from} on") };
        let kept = match target.last_words.len() {
            0 => "no last lines were kept".to_owned(),
            count => format!("the last {count} that were kept follow"),
        };
        let at = target.ended_at.map(Timestamp::from);
        let line = |i: u64, stream: &str, text: Vec<u8>| pb::LogLine {
            attempt: target.attempt.to_string(),
            rank: self.rank,
            seq: FROM_RECORD + i,
            at,
            stream: stream.to_owned(),
            text,
            partial: false,
        };
        let mut lines =
            vec![line(0, "gap", format!("{rest} are not available ({why}); {kept}").into_bytes())];
        let words = target.last_words.iter().zip(1..);
        lines.extend(words.map(|(text, i)| line(i, "stderr", text.clone().into_bytes())));
        lines
    }

    async fn send(&self, lines: Vec<pb::LogLine>) -> Result<(), Gone> {
        if lines.is_empty() {
            return Ok(());
        }
        self.call.pages.send(Ok(pb::JobLogsResponse { lines })).await.map_err(|_| Gone)
    }
}

async fn next_page(
    stream: &mut Streaming<ReadLogResponse>,
    follow: bool,
) -> Result<Option<ReadLogResponse>, Failure> {
    let next = stream.message();
    let next = if follow {
        next.await
    } else {
        tokio::time::timeout(PAGE_DEADLINE, next).await.map_err(|_| Failure::Unavailable {
            reason: "the node stopped in the middle of its log".to_owned(),
            hint: String::new(),
            retry_after_ms: 0,
        })?
    };
    next.map_err(|status| Failure::from_status(&status))
}

fn stamp(ts_ns: u64) -> Timestamp {
    Timestamp { seconds: (ts_ns / 1_000_000_000) as i64, nanos: (ts_ns % 1_000_000_000) as i32 }
}
