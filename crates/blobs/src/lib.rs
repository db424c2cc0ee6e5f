//! Bytes that are what their name says: checkpoint shards, manifests and job bundles on a node's disk.
//!
//! ```text
//!  begin ─► write (hashed as it goes) ─► finish: fsync, rename, fsync folder ─► ShardMeta (the receipt's content)
//!  open_shard ─► every extent is verified before one byte of it is handed out (invariant "never bytes that do not match")
//! ```
//! Blocking I/O in all but `objects`: async callers use `spawn_blocking`. Nothing here decides what may be deleted: only what the
//! log retired is removed, by exact key.

mod bundle;
mod extent;
mod files;
mod hash_pool;
pub mod manifest;
pub mod objects;
mod outboard;
pub mod pack;
mod store;

pub use bundle::{BundleError, BundleReader, BundleStore, Keep};
pub use extent::EXTENT_BYTES;
pub use manifest::{Manifest, ManifestError, ManifestShard};
pub use pack::{PackError, PackLimits, PackStats, pack_dir, pack_files, unpack};
pub use store::{
    OpenError, ReadError, SealNote, ShardKey, ShardMeta, ShardPieces, ShardReader, ShardStore, ShardWriter,
    WriteError,
};
