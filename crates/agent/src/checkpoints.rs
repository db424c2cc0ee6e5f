//! What this agent knows of checkpoints that are under way: receipts to repeat until the log has decided, and the
//! decisions that workers wait for. Shared by the loop, the worker API and the savers; owns nothing on disk.

use std::collections::{BTreeMap, VecDeque};

use outlast_control::state::Holder;
use outlast_proto::convert::ReportedReceipt;
use outlast_types::{AttemptId, CheckpointSeq, Digest, JobId};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Decisions remembered for workers that ask late; a worker asks for its newest few.
const FATES_KEPT: usize = 1_024;

/// What the log says of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sealed,
    /// Never to be restored from: aborted, quarantined or retired.
    Over(String),
}

impl Fate {
    /// Whether bytes that were never sealed may be deleted. Those of a checkpoint whose record is gone are left to the
    /// rules about orphans, and what is quarantined is kept.
    pub(crate) fn bytes_may_go(&self) -> bool {
        ["aborted", "retired"].iter().any(|word| Self::of(word).as_ref() == Some(self))
    }

    /// By the wire's word. `None`: not decided, or a word of a newer version; there receipts go on and bytes are kept.
    pub(crate) fn of(state: &str) -> Option<Self> {
        match state {
            "sealed" => Some(Fate::Sealed),
            "aborted" | "quarantined" | "retired" => Some(Fate::Over(format!("it was {state}"))),
            _ => None,
        }
    }
}

/// A rank's part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    pub(crate) attempt: AttemptId,
    pub(crate) seq: CheckpointSeq,
    pub(crate) rank: u32,
}

#[derive(Debug)]
pub(crate) struct Checkpoints {
    inner: Mutex<Inner>,
    /// Grows with each change: whoever waits looks again.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    receipts: BTreeMap<Part, ReportedReceipt>,
    fates: BTreeMap<(JobId, CheckpointSeq), Fate>,
    order: VecDeque<(JobId, CheckpointSeq)>,
}

impl Checkpoints {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), changes: watch::Sender::new(0) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn receipts(&self) -> Vec<ReportedReceipt> {
        self.inner.lock().receipts.values().cloned().collect()
    }

    /// The worker has handed its bytes over; they are being written.
    pub(crate) fn staged(&self, part: Part) {
        self.put(part, |receipt| receipt.staged = true);
    }

    /// The bytes are durable at these holders.
    pub(crate) fn held(
        &self,
        part: Part,
        root: Digest,
        size_bytes: u64,
        holders: Vec<Holder>,
        no_more_holders: bool,
    ) {
        self.put(part, |receipt| {
            receipt.root = Some(root);
            receipt.size_bytes = size_bytes;
            receipt.holders = holders;
            receipt.no_more_holders = no_more_holders;
        });
    }

    /// The save failed: the leader gives the checkpoint up at once, instead of waiting for a part that never comes.
    pub(crate) fn failed(&self, part: Part, why: String) {
        self.put(part, |receipt| receipt.failed = Some(why));
    }

    /// Whether the receipt is still wanted.
    pub(crate) fn is_pending(&self, part: &Part) -> bool {
        self.inner.lock().receipts.contains_key(part)
    }

    pub(crate) fn fate(&self, job: JobId, seq: CheckpointSeq) -> Option<Fate> {
        self.inner.lock().fates.get(&(job, seq)).cloned()
    }

    /// The log has decided: receipts end, and who waits is told.
    pub(crate) fn decided(&self, job: JobId, seq: CheckpointSeq, fate: Fate) {
        let mut inner = self.inner.lock();
        inner.receipts.retain(|part, _| (part.attempt.group.job, part.seq) != (job, seq));
        if inner.fates.insert((job, seq), fate).is_none() {
            inner.order.push_back((job, seq));
        }
        if inner.order.len() > FATES_KEPT {
            let oldest = inner.order.pop_front().expect("more than one is kept");
            inner.fates.remove(&oldest);
        }
        drop(inner);
        self.changed();
    }

    /// The log has no record of it any more, and nobody will say more: its receipts end. Where there are none nothing
    /// is remembered, or the answers about old bytes would crowd out what workers wait for.
    pub(crate) fn gone(&self, job: JobId, seq: CheckpointSeq) {
        let is_it = |part: &Part| (part.attempt.group.job, part.seq) == (job, seq);
        let is_pending = self.inner.lock().receipts.keys().any(is_it);
        if is_pending {
            self.decided(job, seq, Fate::Over("the log has no record of it any more".to_owned()));
        }
    }

    fn put(&self, part: Part, change: impl FnOnce(&mut ReportedReceipt)) {
        let mut inner = self.inner.lock();
        let Part { attempt, seq, rank } = part;
        if inner.fates.contains_key(&(attempt.group.job, seq)) {
            return;
        }
        let empty = || ReportedReceipt {
            attempt,
            seq,
            rank,
            staged: true,
            root: None,
            size_bytes: 0,
            holders: Vec::new(),
            no_more_holders: false,
            failed: None,
        };
        change(inner.receipts.entry(part).or_insert_with(empty));
        drop(inner);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_repeated_until_the_log_has_decided_and_do_not_come_back() {
        let checkpoints = Checkpoints::new();
        let part = Part { attempt: "j1/0@1.1".parse().expect("valid"), seq: CheckpointSeq(4), rank: 0 };
        let mut changes = checkpoints.subscribe();
        checkpoints.staged(part);
        assert!(changes.has_changed().expect("open"));
        changes.mark_unchanged();
        checkpoints.held(part, Digest([1; 32]), 10, Vec::new(), true);
        let receipts = checkpoints.receipts();
        assert_eq!((receipts.len(), receipts[0].size_bytes, receipts[0].no_more_holders), (1, 10, true));
        checkpoints.decided(part.attempt.group.job, part.seq, Fate::Sealed);
        assert!(changes.has_changed().expect("open"));
        checkpoints.held(part, Digest([1; 32]), 10, Vec::new(), true);
        assert_eq!(checkpoints.receipts(), [], "a late copy is no new receipt");
        assert_eq!(checkpoints.fate(part.attempt.group.job, part.seq), Some(Fate::Sealed));
    }

    #[test]
    fn a_receipt_ends_when_the_record_is_gone_and_nothing_else_is_remembered() {
        let checkpoints = Checkpoints::new();
        let part = Part { attempt: "j1/0@1.1".parse().expect("valid"), seq: CheckpointSeq(4), rank: 0 };
        checkpoints.held(part, Digest([1; 32]), 10, Vec::new(), true);
        checkpoints.gone(JobId(1), CheckpointSeq(3));
        assert_eq!(checkpoints.receipts().len(), 1);
        assert_eq!(checkpoints.fate(JobId(1), CheckpointSeq(3)), None);
        checkpoints.gone(JobId(1), CheckpointSeq(4));
        assert_eq!(checkpoints.receipts(), []);
        assert!(
            matches!(checkpoints.fate(JobId(1), CheckpointSeq(4)), Some(Fate::Over(_))),
            "who waits is told"
        );
    }
}
