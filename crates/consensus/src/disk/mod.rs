//! The disk as the Raft log sees it: a seam, so that a simulated disk can lose, tear, fill up and fail.
//!
//! A disk is owned by the log's writer thread; readers share its [`DiskReader`]. What is staged can be read at once, and
//! is durable only after the next [`RaftDisk::sync`].

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) mod check;
pub(crate) mod frame;
mod meter;
pub(crate) mod probe;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub(crate) mod sled;

pub use check::{Damage, Recovered};
pub(crate) use meter::Meter;
pub use meter::SyncTimes;

/// Which entry: one leader a term, so (term, index) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LogMark {
    pub term: u64,
    pub index: u64,
}

/// One log entry; the payload is opaque to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub mark: LogMark,
    pub payload: Bytes,
}

/// What is kept beside the entries, in the same tree, so that one batch can change both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaKey {
    Vote,
    Committed,
    Purged,
    Cluster,
    Coordinator,
    Format,
}

impl MetaKey {
    pub const ALL: [MetaKey; 6] =
        [Self::Vote, Self::Committed, Self::Purged, Self::Cluster, Self::Coordinator, Self::Format];

    pub fn name(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::Cluster => "cluster_id",
            Self::Coordinator => "node_id",
            Self::Format => "format",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    Append(Vec<Record>),
    /// Deletes every record from this index on.
    Truncate {
        from: u64,
    },
    /// Deletes every record up to this index. Bookkeeping: it may be spread over several batches.
    Purge {
        to: u64,
    },
    Put {
        key: MetaKey,
        value: Vec<u8>,
    },
}

/// Reads while the writer writes.
pub trait DiskReader: Send + Sync + 'static {
    /// The records of the range that exist, in order, until `bytes_max` is reached; at least one if there is any.
    ///
    /// # Errors
    /// `InvalidData` for a record that fails its checks: never handed out, because corruption must not spread
    /// (invariant 11).
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>>;
    /// # Errors
    /// `InvalidData` for a value that fails its checks.
    fn meta(&self, key: MetaKey) -> io::Result<Option<Vec<u8>>>;
    /// The lowest and highest index that is stored, purged leftovers included.
    ///
    /// # Errors
    /// What the disk reports.
    fn bounds(&self) -> io::Result<Option<(u64, u64)>>;
    /// Lets go of the files: later calls fail.
    fn close(&self);
}

pub trait RaftDisk: Send + 'static {
    /// Takes the operations in order, atomically as a group (a purge excepted).
    ///
    /// # Errors
    /// Any error means that the process must end: nobody knows what the disk took.
    fn stage(&mut self, ops: &[DiskOp]) -> io::Result<()>;
    /// Returns when everything staged before is durable.
    ///
    /// # Errors
    /// Any error means that the process must end; a sync is never tried again.
    fn sync(&mut self) -> io::Result<()>;
    fn reader(&self) -> Arc<dyn DiskReader>;
}
