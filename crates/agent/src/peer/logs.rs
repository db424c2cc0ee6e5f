//! A worker's output for whoever asks, from its keeper's files: running or ended, followed or not.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outlast_process::{ExitFile, LogLine, LogReader, LogStream};
use outlast_proto::convert::parse;
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::service::LogRecords;
use crate::assigned::WorkerKey;
use crate::context::{Context, blocking};
use crate::worker::WorkerDir;

/// Lines in one message, and their bytes; far below the message limit.
const LINES_MAX: usize = 512;
const BYTES_MAX: usize = 512 << 10;
/// Messages waiting for a slow reader.
const MESSAGES_MAX: usize = 4;
/// How often a followed log is looked at: half the time in which a line has to leave the node.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A tail reads all that there is; more lines than this are not kept in memory for it.
const TAIL_MAX: u32 = 100_000;

pub(super) fn read(
    context: &Arc<Context>,
    request: &pb::ReadLogRequest,
    permit: OwnedSemaphorePermit,
) -> Result<LogRecords, Status> {
    let key = WorkerKey { attempt: parse("attempt", &request.attempt)?, rank: request.rank };
    let dir = WorkerDir::new(&context.folder.workers(), &key);
    if !dir.root().exists() {
        let what = format!("the log of {key} on node {}", context.node);
        return Err(Failure::NotFound { what, hint: String::new() }.into());
    }
    let (sender, queue) = mpsc::channel(MESSAGES_MAX);
    let follow = Follow { keeper: dir.keeper(), over: dir, follow: request.follow, sender };
    let (from_seq, tail) = (request.from_seq, request.tail.min(TAIL_MAX));
    let shutdown = context.shutdown.clone();
    context.tasks.spawn(async move {
        let _held = permit;
        let _ = shutdown.run_until_cancelled(follow.run(from_seq, tail)).await;
    });
    Ok(Box::pin(ReceiverStream::new(queue)))
}

struct Follow {
    keeper: PathBuf,
    over: WorkerDir,
    follow: bool,
    sender: mpsc::Sender<Result<pb::ReadLogResponse, Status>>,
}

impl Follow {
    async fn run(self, from_seq: u64, tail: u32) {
        let keeper = self.keeper.clone();
        let mut reader = blocking(move || LogReader::open(&keeper, from_seq)).await;
        let mut tail = tail as usize;
        loop {
            // Before the look at the log: what was written before the end is then surely seen.
            let has_ended = self.has_ended().await;
            let (back, records, is_drained) = blocking(move || page(reader, tail)).await;
            reader = back;
            tail = 0;
            let is_end = is_drained && (has_ended || !self.follow);
            let mut messages = in_messages(records);
            if is_end && messages.is_empty() {
                messages.push(Vec::new());
            }
            let last = messages.len().wrapping_sub(1);
            for (place, records) in messages.into_iter().enumerate() {
                let message = pb::ReadLogResponse { records, end: is_end && has_ended && place == last };
                if self.sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            if is_end {
                return;
            }
            if is_drained {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = self.sender.closed() => return,
                }
            }
        }
    }

    async fn has_ended(&self) -> bool {
        let (keeper, dir) = (self.keeper.clone(), self.over.clone());
        blocking(move || dir.is_over() || matches!(ExitFile::read(&keeper), Ok(Some(_)))).await
    }
}

/// The next lines (with a tail: only the newest of all), and whether there are no more at present.
fn page(mut reader: LogReader, tail: usize) -> (LogReader, Vec<pb::LogRecord>, bool) {
    if tail > 0 {
        let mut newest = VecDeque::with_capacity(tail.min(LINES_MAX));
        for line in &mut reader {
            if newest.len() == tail {
                newest.pop_front();
            }
            newest.push_back(line);
        }
        return (reader, newest.into_iter().flat_map(|line| records(line, false)).collect(), true);
    }
    let (mut found, mut bytes) = (Vec::new(), 0);
    while found.len() < LINES_MAX && bytes < BYTES_MAX {
        let Some(line) = reader.next() else { return (reader, found, true) };
        bytes += line.bytes.len();
        found.extend(records(line, true));
    }
    (reader, found, false)
}

/// A tail is one page however long it is, and no message may be.
fn in_messages(records: Vec<pb::LogRecord>) -> Vec<Vec<pb::LogRecord>> {
    let mut messages: Vec<Vec<pb::LogRecord>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let has_room = |message: &Vec<_>| message.len() < LINES_MAX && bytes < BYTES_MAX;
        if !messages.last().is_some_and(has_room) {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += record.text.len();
        messages.last_mut().expect("just made").push(record);
    }
    messages
}

/// A line, after the gap before it where there is one.
fn records(line: LogLine, with_gap: bool) -> Vec<pb::LogRecord> {
    let mut records = Vec::with_capacity(1);
    if line.missed > 0 && with_gap {
        records.push(pb::LogRecord {
            seq: line.seq - 1,
            ts_ns: line.ts_ns,
            stream: "gap".to_owned(),
            partial: false,
            text: Bytes::from(format!("{} lines are missing", line.missed)),
        });
    }
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    };
    records.push(pb::LogRecord {
        seq: line.seq,
        ts_ns: line.ts_ns,
        stream: stream.to_owned(),
        partial: line.partial,
        text: Bytes::from(line.bytes),
    });
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tail_leaves_in_messages_that_fit() {
        let record = |seq, size| pb::LogRecord {
            seq,
            text: Bytes::from(vec![b'x'; size]),
            ..pb::LogRecord::default()
        };
        assert!(in_messages(Vec::new()).is_empty());
        let short = in_messages((0..2_000).map(|seq| record(seq, 1)).collect());
        assert_eq!(short.iter().map(Vec::len).collect::<Vec<_>>(), [512, 512, 512, 464]);
        let long = in_messages((0..100).map(|seq| record(seq, 60_000)).collect());
        let size = |message: &Vec<pb::LogRecord>| message.iter().map(|line| line.text.len()).sum::<usize>();
        assert!(long.iter().all(|message| size(message) < crate::transfer::MESSAGE_BYTES_MAX));
        let seqs: Vec<_> = long.into_iter().flatten().map(|record| record.seq).collect();
        assert_eq!(seqs, (0..100).collect::<Vec<_>>());
    }
}
