//! The Raft log: openraft's storage traits on top of a [`crate::disk::RaftDisk`].

mod store;
mod writer;

pub(crate) use store::LogStore;
pub(crate) use writer::LogWriter;
