//! openraft's view of the log. Marks and recent entries are in memory; older entries come from the disk.

#![expect(clippy::result_large_err, reason = "openraft's error types are what its traits return")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use super::writer::{Done, LogWriter, Write};
use crate::ballot::Ballot;
use crate::disk::{DiskOp, DiskReader, LogMark, MetaKey, Record, Recovered, check};
use crate::hwm::HighMark;
use crate::snapshot::Covered;
use crate::types::{Entry, LogId, StorageError, TypeConfig, Vote, entry_of, log_id, mark, record_of};

/// Followers that keep up are served from memory.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// One AppendEntries request: far below the message limit, and done within one slow write.
const REQUEST_BYTES_MAX: usize = 2 << 20;

/// Installing a snapshot takes seconds at most; a disk that needs longer has failed.
const COVER_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct LogStore {
    index: Arc<RwLock<Index>>,
    writer: Arc<LogWriter>,
    reader: Arc<dyn DiskReader>,
    covered: watch::Receiver<Covered>,
}

/// What is known of the log without asking the disk.
struct Index {
    vote: Option<Ballot>,
    committed: Option<LogMark>,
    purged: Option<LogMark>,
    last: Option<LogMark>,
    cache: BTreeMap<u64, Record>,
    cache_bytes: usize,
    /// Every record at or above this index is in the cache.
    cached_from: u64,
}

impl Index {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn end(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn high_mark(&self) -> HighMark {
        HighMark { last: self.last, vote: self.vote }
    }

    /// Called before an append: openraft has waited for the one before, so all that is cached is on the disk too.
    fn evict(&mut self) {
        while self.cache_bytes > CACHE_BYTES_MAX
            && let Some((index, record)) = self.cache.pop_first()
        {
            self.cache_bytes -= record.payload.len();
            self.cached_from = index + 1;
        }
    }

    fn append(&mut self, records: &[Record]) {
        self.evict();
        for record in records {
            self.cache_bytes += record.payload.len();
            if let Some(old) = self.cache.insert(record.mark.index, record.clone()) {
                self.cache_bytes -= old.payload.len();
            }
            self.last = Some(record.mark);
        }
    }

    fn forget(&mut self, keep: impl Fn(u64) -> bool) {
        let bytes = &mut self.cache_bytes;
        self.cache.retain(|index, record| {
            let kept = keep(*index);
            *bytes -= if kept { 0 } else { record.payload.len() };
            kept
        });
    }
}

fn log_error(source: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&source)).into()
}

fn write_error(source: io::Error) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&source)).into()
}

impl LogStore {
    pub(crate) fn new(
        recovered: &Recovered,
        reader: Arc<dyn DiskReader>,
        writer: Arc<LogWriter>,
        covered: watch::Receiver<Covered>,
    ) -> Self {
        let index = Index {
            vote: recovered.vote,
            committed: recovered.committed,
            purged: recovered.purged,
            last: recovered.last,
            cache: BTreeMap::new(),
            cache_bytes: 0,
            cached_from: recovered.last.map_or(0, |last| last.index + 1),
        };
        Self { index: Arc::new(RwLock::new(index)), writer, reader, covered }
    }

    /// Hands an operation to the writer and waits until it is durable.
    async fn durable(&self, ops: Vec<DiskOp>, after: HighMark) -> Result<(), StorageError> {
        let (tx, rx) = oneshot::channel();
        self.writer.send(Write { ops, after, done: Done::Waiter(tx) }).map_err(write_error)?;
        rx.await.map_err(|_| write_error(io::Error::other("the log's writer has stopped")))
    }

    fn staged(&self, ops: Vec<DiskOp>, after: HighMark) -> Result<(), StorageError> {
        self.writer.send(Write { ops, after, done: Done::Nobody }).map_err(write_error)
    }

    async fn read(&self, wanted: Range<u64>, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        loop {
            if let Some(records) = self.try_read(&wanted, bytes_max).await? {
                return Ok(records);
            }
        }
    }

    /// `None` when records left the cache between the look at the disk and the look at the cache.
    async fn try_read(
        &self,
        wanted: &Range<u64>,
        bytes_max: usize,
    ) -> Result<Option<Vec<Record>>, StorageError> {
        let (range, cached_from) = {
            let index = self.index.read();
            (wanted.start.max(index.first())..wanted.end.min(index.end()), index.cached_from)
        };
        let mut records = Vec::new();
        if range.start < range.end.min(cached_from) {
            let (reader, older) = (Arc::clone(&self.reader), range.start..range.end.min(cached_from));
            let read = outlast_host::blocking(move || reader.read(older, bytes_max)).await;
            records = read.map_err(|err| log_error(io::Error::other(err)))?.map_err(log_error)?;
        }
        let mut bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        // What the disk cut off at the limit must not be followed by newer records: that would be a hole.
        if bytes >= bytes_max {
            return Ok(Some(records));
        }
        let index = self.index.read();
        if index.cached_from > cached_from {
            return Ok(None);
        }
        let from = range.start.max(cached_from);
        for record in index.cache.range(from..range.end.max(from)).map(|(_, record)| record) {
            records.push(record.clone());
            bytes += record.payload.len();
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(Some(records))
    }

    async fn entries(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let records = self.read(range, bytes_max).await?;
        records.iter().map(|record| entry_of(record).map_err(log_error)).collect()
    }

    /// openraft purges while the snapshot that makes it right is still being installed beside it. A crash in between
    /// would leave a log that begins after every snapshot, and a coordinator that can only be thrown away.
    async fn wait_covered(&self, index: u64) -> Result<(), StorageError> {
        let is_covered = |covered: &Covered| covered.is_some_and(|next| next > index);
        if is_covered(&self.covered.borrow()) {
            return Ok(());
        }
        let mut covered = self.covered.clone();
        let installed = covered.wait_for(|covered| covered.is_none() || is_covered(covered));
        let installed = tokio::time::timeout(COVER_WAIT_MAX, installed).await;
        if matches!(&installed, Ok(Ok(covered)) if is_covered(covered)) {
            return Ok(());
        }
        Err(write_error(io::Error::other(format!(
            "no snapshot covers entry {index}, which should be purged"
        ))))
    }

    /// The mark of the entry before `index`, which is `purged` at the lower end.
    async fn mark_before(&self, index: u64) -> Result<Option<LogMark>, StorageError> {
        let purged = self.index.read().purged;
        let Some(before) =
            index.checked_sub(1).filter(|before| purged.is_none_or(|purged| *before > purged.index))
        else {
            return Ok(purged);
        };
        Ok(self.read(before..index, usize::MAX).await?.first().map(|record| record.mark).or(purged))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(bounds(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start..end, REQUEST_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let index = self.index.read();
        Ok(LogState { last_purged_log_id: index.purged.map(log_id), last_log_id: index.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let ballot = Ballot::from(vote);
        let after = {
            let mut index = self.index.write();
            index.vote = Some(ballot);
            index.high_mark()
        };
        self.durable(vec![DiskOp::Put { key: MetaKey::Vote, value: check::encode(&ballot) }], after).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.index.read().vote.map(Vote::from))
    }

    /// Rides with the next barrier: after a power loss the mark may be older, and the leader's barrier entry covers that.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let Some(committed) = committed.as_ref().map(mark) else { return Ok(()) };
        let after = {
            let mut index = self.index.write();
            index.committed = Some(committed);
            index.high_mark()
        };
        self.staged(vec![DiskOp::Put { key: MetaKey::Committed, value: check::encode(&committed) }], after)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.index.read().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<Record> = entries.into_iter().map(|entry| record_of(&entry)).collect();
        let after = {
            let mut index = self.index.write();
            index.append(&records);
            index.high_mark()
        };
        let write = Write { ops: vec![DiskOp::Append(records)], after, done: Done::Flushed(callback) };
        self.writer.send(write).map_err(write_error)
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let from = since.index;
        if from >= self.index.read().end() {
            return Ok(());
        }
        let last = self.mark_before(from).await?;
        let after = {
            let mut index = self.index.write();
            index.forget(|i| i < from);
            index.cached_from = index.cached_from.min(from);
            index.last = last;
            index.high_mark()
        };
        self.durable(vec![DiskOp::Truncate { from }], after).await
    }

    /// Rides with the next barrier: entries that come back after a power loss are below the mark, or are purged again.
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let purged = mark(&upto);
        self.wait_covered(purged.index).await?;
        let after = {
            let mut index = self.index.write();
            index.purged = Some(purged);
            index.forget(|i| i > purged.index);
            if index.last.is_none_or(|last| last.index <= purged.index) {
                index.last = Some(purged);
                index.cached_from = purged.index + 1;
            }
            index.high_mark()
        };
        let put = DiskOp::Put { key: MetaKey::Purged, value: check::encode(&purged) };
        self.staged(vec![put, DiskOp::Purge { to: purged.index }], after)
    }
}
