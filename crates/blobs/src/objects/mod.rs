//! The object-store tier: sealed checkpoints in a bucket that explains itself.
//!
//! # The bucket explains itself
//!
//! ```text
//!  URL/blobs/ATTEMPT/SEQ/RANK-ROOT        one rank's bytes, under the same name as in an agent's shard store
//!                        RANK-ROOT.ext    its extent hashes, where it has more than one extent (the outboard file)
//!                        MANIFEST         the canonical manifest; BLAKE3 of it is the root in the seal
//!                        COMMIT           JSON: format, cluster, job, job_name, manifest_root, record (the seal), blake3
//!  URL/bundles/DIGEST                      the files that a job brings along, under their BLAKE3
//! ```
//! Written in this order, `MANIFEST` and `COMMIT` only if they are not there. So a checkpoint is in the bucket exactly if
//! its `COMMIT` is, and whoever finds one needs nothing else: it names the cluster and the job and carries the seal, its
//! `manifest_root` proves `MANIFEST`, whose roots prove the bytes. The last field of `COMMIT`, `blake3`, is the BLAKE3 of
//! all bytes before `,"blake3"`. Attempt, sequence number and root are in every key: a worker of an old attempt can only
//! write where nobody looks. Removal goes by exact key, `COMMIT` first. Each cluster has a prefix of its own: a `COMMIT` of
//! another one is a conflict, for publishing and for removal; one that a cluster goes on from is the same cluster.
//!
//! A job's bundle is there before the first `COMMIT` that names it. Bundles are never removed: jobs share them, whatever
//! names one may be written at any moment, and they are small beside checkpoints. Who wants the room back deletes those
//! that no `COMMIT` names.
//!
//! ```text
//!  put_shard (each holder) ─► publish: all ranks there? ─no─► Incomplete (ask again later)
//!                                          └─yes─► MANIFEST ─► COMMIT ─► Committed │ other content there: Conflict
//! ```
//! Multipart uploads that nobody finishes are ended when they are found (`put_shard`, `abandon`); those of a node that
//! never comes back need a lifecycle rule of the bucket (incomplete uploads, 7 days).
//!
//! The store is asked in bounded ways only: `ObjectLimits` has every limit. Nothing here reads the environment; only the
//! HTTP client underneath follows `HTTPS_PROXY` and `NO_PROXY`, as every client does.

mod backend;
mod bundle;
mod commit;
mod download;
mod keys;
mod limits;
mod list;
mod note;
mod publish;
mod remove;
mod request;
mod upload;
mod url;

use std::sync::Arc;

use outlast_types::Digest;
use tokio::sync::Semaphore;

use crate::ShardKey;
use backend::Backend;
use keys::Keys;

pub use backend::OpenTierError;
pub use bundle::PutBundleError;
pub use commit::{CommitError, CommitRecord};
pub use download::GetError;
pub use limits::ObjectLimits;
pub use list::{Committed, FoundCheckpoint, FoundState};
pub use publish::{PublishError, Published};
pub use remove::RemoveError;
pub use request::RequestError;
pub use upload::{PutError, PutReport};
pub use url::{StoreOptions, StoreUrl, StoreUrlError};

/// A cheap handle; clones share the limits on memory.
#[derive(Clone)]
pub struct ObjectTier {
    url: StoreUrl,
    backend: Backend,
    keys: Keys,
    limits: ObjectLimits,
    /// KiB of parts in memory, one pool for each direction: a restore never waits behind uploads.
    uploading: Arc<Semaphore>,
    downloading: Arc<Semaphore>,
}

impl ObjectTier {
    /// Prepares access; nothing is asked of the store yet.
    ///
    /// # Errors
    /// When the options do not make sense, or a `file://` folder cannot be made.
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenTierError> {
        Self::open_with_limits(url, options, ObjectLimits::default())
    }

    /// # Errors
    /// See `open`.
    pub fn open_with_limits(
        url: &StoreUrl,
        options: &StoreOptions,
        limits: ObjectLimits,
    ) -> Result<Self, OpenTierError> {
        let backend = Backend::open(url, options)?;
        let pool = || Arc::new(Semaphore::new(limits.pool_kib() as usize));
        Ok(Self {
            url: url.clone(),
            backend,
            keys: Keys::new(url.prefix()),
            uploading: pool(),
            downloading: pool(),
            limits,
        })
    }

    pub fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// Where one rank's bytes are in the store, below its URL's bucket: for messages and records.
    pub fn key_of(&self, key: &ShardKey, root: Digest) -> String {
        self.keys.data(key, root).to_string()
    }
}
