//! The shard store of one data folder.
//!
//! ```text
//!  ROOT/disk-id                                  identity of the disk, made once
//!  ROOT/lock                                     one store a folder
//!  ROOT/tmp/…                                    being written; never referenced; emptied at open
//!  ROOT/blobs/ATTEMPT/SEQ/RANK-ROOT              the bytes
//!                         RANK-ROOT.ext          extent hashes
//!                         RANK-ROOT.seal         what the log said when it was sealed
//!                         RANK-ROOT.bad          bytes that went bad, as evidence
//!                         RANK-ROOT.upload       how far its upload to the object store is
//!                         RANK-ROOT.stored       the object store may have it: to be taken away there too
//! ```
//! The files are the truth; the index in memory is rebuilt from them at open. Attempt, sequence number and root are in
//! every path, so a worker of an old attempt can only write where nobody looks.

mod key;
mod pieces;
mod reader;
mod scan;
mod scrub;
mod seal;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use outlast_failpoint::{Failpoint, hit};
use outlast_types::{CheckpointSeq, Digest, DiskId, IdParseError, JobId};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock, statvfs};

pub use key::{ShardKey, ShardMeta};
pub use pieces::ShardPieces;
pub use reader::{ReadError, ShardReader};
pub use seal::SealNote;
pub use writer::{ShardWriter, WriteError};

pub(crate) use key::parse_attempt;

use crate::extent::EXTENT_BYTES;
use crate::files;
use crate::hash_pool::HashPool;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data folder {} is in use by another process", root.display())]
    InUse { root: PathBuf },
    #[error("the disk id in {} is damaged; if the disk is really this node's, remove that file: its shards are then counted as new", path.display())]
    DiskId {
        path: PathBuf,
        #[source]
        source: IdParseError,
    },
    #[error("the data folder {} cannot be used", root.display())]
    Io {
        root: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A cheap handle; clones share one store.
#[derive(Clone)]
pub struct ShardStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    disk: DiskId,
    extent_bytes: u64,
    /// The file system that the folder was opened on.
    device: u64,
    index: Mutex<BTreeMap<(ShardKey, Digest), ShardMeta>>,
    /// Bytes that went bad: no shards, and still to be removed when the log says so.
    aside: Mutex<BTreeSet<(ShardKey, Digest)>>,
    /// Held while names appear or go away, so that a folder is not removed under a file that is about to come.
    layout: Mutex<()>,
    /// Started with the first shard that is written or read.
    hash_pool: OnceLock<Arc<HashPool>>,
    _lock: File,
}

impl ShardStore {
    /// Opens the folder (and makes it, private to its user), removes what was half written and finds every whole shard.
    ///
    /// # Errors
    /// See `OpenError`.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_with_extents(root, EXTENT_BYTES)
    }

    /// Like `open`, for tests: new shards get extents of this size (a power of two, 1 KiB at least). Shards with extents of
    /// any size can be read.
    ///
    /// # Errors
    /// See `OpenError`.
    pub fn open_with_extents(root: &Path, extent_bytes: u64) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { root: root.to_owned(), source };
        files::create_dir_durable(root).map_err(io)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let lock = lock(root)?;
        let tmp = root.join("tmp");
        files::create_dir_durable(&tmp).map_err(io)?;
        files::create_dir_durable(&root.join("blobs")).map_err(io)?;
        files::empty_dir(&tmp).map_err(io)?;
        let disk = disk_id(root, &tmp)?;
        let scan::Found { index, aside } = scan::scan(&root.join("blobs"), &tmp).map_err(io)?;
        let (root, layout) = (root.to_owned(), Mutex::new(()));
        let (index, aside) = (Mutex::new(index), Mutex::new(aside));
        let device =
            fs::metadata(&root).map_err(|source| OpenError::Io { root: root.clone(), source })?.dev();
        let hash_pool = OnceLock::new();
        let inner = Inner { root, disk, extent_bytes, device, index, aside, layout, hash_pool, _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn disk_id(&self) -> DiskId {
        self.inner.disk.clone()
    }

    /// Every whole shard, by key.
    pub fn list(&self) -> Vec<ShardMeta> {
        self.inner.index.lock().values().cloned().collect()
    }

    /// Shards that were set aside, of no use but as evidence; and those whose file is lost, and whose bytes the object store
    /// may have.
    pub fn aside(&self) -> Vec<(ShardKey, Digest)> {
        self.inner.aside.lock().iter().copied().collect()
    }

    /// One rank's shard of a checkpoint; the sealed one where a rank was written twice with different bytes.
    pub fn find(&self, job: JobId, seq: CheckpointSeq, rank: u32) -> Option<ShardMeta> {
        let index = self.inner.index.lock();
        let found =
            index.values().filter(|meta| (meta.key.job, meta.key.seq, meta.key.rank) == (job, seq, rank));
        found.max_by_key(|meta| meta.sealed).cloned()
    }

    /// # Errors
    /// `Missing` where there is no such shard, `Corrupt` where its hashes do not make the root.
    pub fn open_shard(&self, key: &ShardKey, root: Digest) -> Result<ShardReader, ReadError> {
        let (data, tmp) = (self.data_path(key, root), self.inner.root.join("tmp"));
        let opened = ShardReader::open(&data, &tmp, root, self.hash_pool());
        opened.map_err(|err| self.unless_unmounted(err))
    }

    /// Reads the whole shard from the disk.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(&self, key: &ShardKey, root: Digest) -> Result<(), ReadError> {
        let mut reader = self.open_shard(key, root)?;
        while reader.next_extent()?.is_some() {}
        Ok(())
    }

    /// Deletes one shard, by exact key and root; whether it was there. Only for what the log retired or aborted.
    ///
    /// # Errors
    /// When the disk refuses; it is then still there in part, and the call can be repeated.
    pub fn remove(&self, key: &ShardKey, root: Digest) -> io::Result<bool> {
        let data = self.data_path(key, root);
        let _layout = self.inner.layout.lock();
        hit(Failpoint::AgentRetireBeforeUnlink)?;
        // Whoever removes has taken it out of the object store before; without bytes the note would say that it is there.
        let was_stored = files::remove_if_there(&with_suffix(&data, "stored"))?;
        // The bytes first: hashes without bytes are nothing, bytes without hashes would have to be hashed again.
        let was_there = files::remove_if_there(&data)?;
        hit(Failpoint::AgentRetireAfterUnlink)?;
        let mut had_any = was_there || was_stored;
        for suffix in COMPANIONS {
            had_any |= files::remove_if_there(&with_suffix(&data, suffix))?;
        }
        self.inner.index.lock().remove(&(*key, root));
        self.inner.aside.lock().remove(&(*key, root));
        if had_any {
            let folder = data.parent().expect("a shard lies in a folder");
            files::sync_dir(folder)?;
            // Not empty while other ranks are there, and that is fine.
            let _ =
                fs::remove_dir(folder).and_then(|()| fs::remove_dir(folder.parent().expect("blobs/ATTEMPT")));
        }
        Ok(was_there)
    }

    /// What a user without privileges may still write to this disk.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.inner.root)
    }

    fn hash_pool(&self) -> Arc<HashPool> {
        Arc::clone(self.inner.hash_pool.get_or_init(|| Arc::new(HashPool::start())))
    }

    /// For files that are being written; on the same disk as the shards.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.inner.root.join("tmp")
    }

    pub(crate) fn data_path(&self, key: &ShardKey, root: Digest) -> PathBuf {
        self.inner.root.join("blobs").join(key.path(root))
    }
}

fn free_bytes(root: &Path) -> io::Result<u64> {
    let disk = statvfs(root)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What may lie beside a shard's bytes.
const COMPANIONS: [&str; 5] = ["ext", "seal", "bad", "upload", "stored"];

pub(crate) fn with_suffix(data: &Path, suffix: &str) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { root: root.to_owned(), source };
    let mut options = OpenOptions::new();
    let file =
        options.write(true).create(true).truncate(false).mode(0o600).open(root.join("lock")).map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { root: root.to_owned() }),
        Err(err) => Err(io(err.into())),
    }
}

/// Read, or made where the folder is used for the first time (or its identity was lost: then it is a new disk, and its
/// shards are no longer counted on until somebody verifies them).
fn disk_id(root: &Path, tmp: &Path) -> Result<DiskId, OpenError> {
    let io = |source| OpenError::Io { root: root.to_owned(), source };
    let path = root.join("disk-id");
    match fs::read_to_string(&path) {
        Ok(text) => DiskId::new(text.trim()).map_err(|source| OpenError::DiskId { path, source }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let mut random = [0u8; 16];
            getrandom::fill(&mut random).map_err(|err| io(io::Error::other(err)))?;
            let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            files::write_durable(tmp, &path, text.as_bytes()).map_err(io)?;
            Ok(DiskId::new(text).expect("32 hex digits are a name"))
        }
        // Not text at all.
        Err(err) if err.kind() == io::ErrorKind::InvalidData => {
            Err(OpenError::DiskId { path, source: DiskId::new("\u{fffd}").expect_err("not a name") })
        }
        Err(err) => Err(io(err)),
    }
}
