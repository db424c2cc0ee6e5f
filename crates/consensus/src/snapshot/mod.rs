//! Snapshots: files with checksummed frames, made and installed atomically, at most two of them.

mod format;
mod store;

pub use format::SnapshotError;
pub(crate) use format::SnapshotHead;
pub(crate) use store::{Covered, SnapshotData, SnapshotStore, Snapshots, inspect};
