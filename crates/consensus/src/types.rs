//! The types that openraft is used with, and how an entry's payload is laid out as bytes.
//!
//! One layout on disk and on the wire: a kind byte, then the bytes of the batch or of the membership.

use bytes::{BufMut as _, Bytes, BytesMut};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, Membership};
use outlast_control::state::Response;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::disk::{LogMark, Record};
use crate::snapshot::SnapshotData;

openraft::declare_raft_types!(
    /// A log of command batches; one reply a command.
    pub(crate) TypeConfig:
        D = Batch,
        R = Vec<Response>,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = SnapshotData,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, BasicNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, BasicNode>;

/// The commands of one log entry, encoded once by the proposer and decoded when applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch(pub(crate) Bytes);

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = Batch;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the bytes of a batch")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Batch, E> {
                Ok(Batch(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(BytesVisitor).map_err(D::Error::custom)
    }
}

const KIND_BLANK: u8 = 0;
const KIND_BATCH: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("the entry at {index} has no payload")]
    Empty { index: u64 },
    #[error("the entry at {index} is of kind {kind}, which this build does not know: upgrade it")]
    Kind { index: u64, kind: u8 },
    #[error("the membership in the entry at {index} does not decode")]
    Membership {
        index: u64,
        #[source]
        source: rmp_serde::decode::Error,
    },
}

pub(crate) fn log_id(mark: LogMark) -> LogId {
    // One leader a term (`single-term-leader`): the node id takes no part in a log id.
    LogId::new(CommittedLeaderId::new(mark.term, 0), mark.index)
}

pub(crate) fn mark(id: &LogId) -> LogMark {
    LogMark { term: id.leader_id.term, index: id.index }
}

pub(crate) fn record_of(entry: &Entry) -> Record {
    let mut payload = BytesMut::new();
    match &entry.payload {
        EntryPayload::Blank => payload.put_u8(KIND_BLANK),
        EntryPayload::Normal(batch) => {
            payload.reserve(batch.0.len() + 1);
            payload.put_u8(KIND_BATCH);
            payload.put_slice(&batch.0);
        }
        EntryPayload::Membership(membership) => {
            payload.put_u8(KIND_MEMBERSHIP);
            let bytes = rmp_serde::to_vec_named(membership).expect("writing into memory cannot fail");
            payload.put_slice(&bytes);
        }
    }
    Record { mark: mark(&entry.log_id), payload: payload.freeze() }
}

pub(crate) fn entry_of(record: &Record) -> Result<Entry, PayloadError> {
    let index = record.mark.index;
    let kind = *record.payload.first().ok_or(PayloadError::Empty { index })?;
    let payload = match kind {
        KIND_BLANK => EntryPayload::Blank,
        KIND_BATCH => EntryPayload::Normal(Batch(record.payload.slice(1..))),
        KIND_MEMBERSHIP => {
            let membership: Membership<u64, BasicNode> = rmp_serde::from_slice(&record.payload[1..])
                .map_err(|source| PayloadError::Membership { index, source })?;
            EntryPayload::Membership(membership)
        }
        kind => return Err(PayloadError::Kind { index, kind }),
    };
    Ok(Entry { log_id: log_id(record.mark), payload })
}
