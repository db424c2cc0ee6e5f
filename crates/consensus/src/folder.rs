//! The data folder of a coordinator: what is where, who may use it, how full it is.
//!
//! ```text
//! <dir>/lock           held while a process uses the folder
//!       identity       which coordinator of which cluster this is (written last when a folder is made)
//!       hwm            high-water file
//!       raft/          the log (sled)
//!       snapshots/     snap-<term>-<index>
//!       quarantine/    what was found damaged, by time
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use outlast_types::{ClusterId, CoordinatorId};
use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Serialize};

const IDENTITY_FORMAT: u32 = 1;

/// Which coordinator a folder belongs to. Its existence means: this id has been used, so its log must be here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) format: u32,
    pub(crate) cluster_id: ClusterId,
    pub(crate) coordinator: CoordinatorId,
    pub(crate) advertise: String,
    /// The founder finishes the founding after a crash in its middle.
    pub(crate) founder: Option<outlast_types::Profile>,
}

impl Identity {
    pub(crate) fn new(cluster_id: ClusterId, coordinator: CoordinatorId, advertise: String) -> Self {
        Self { format: IDENTITY_FORMAT, cluster_id, coordinator, advertise, founder: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "another process uses the folder {path}: stop it first, or give this coordinator a folder of its own"
    )]
    Locked { path: PathBuf },
    #[error("the file {path} does not parse: it was edited or damaged")]
    Identity {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the file {path} has format {found}; this build knows {IDENTITY_FORMAT}: upgrade it")]
    Format { path: PathBuf, found: u32 },
    #[error("the folder {path} cannot be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A folder that this process holds the lock of.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    lock: File,
}

/// Closing the file is not enough: a lock belongs to everybody who has the file open, and a child that another thread of
/// this process is just starting has it too, until it runs its own program.
impl Drop for Folder {
    fn drop(&mut self) {
        // An error leaves it to the end of the process.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// # Errors
/// What the file system reports.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file so that after a crash either the old or the new contents are there.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&tmp, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A coordinator whose folder was found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerMember {
    pub cluster_id: ClusterId,
    pub coordinator: CoordinatorId,
    /// Where its data was moved to.
    pub lies_in: PathBuf,
}

/// Who was moved into quarantine in this folder last.
pub fn former_member(root: &Path) -> Option<FormerMember> {
    let entries = std::fs::read_dir(root.join("quarantine")).ok()?;
    let mut places: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    places.sort();
    places.into_iter().rev().find_map(|lies_in| {
        let text = std::fs::read(lies_in.join("identity")).ok()?;
        let Identity { cluster_id, coordinator, .. } = serde_json::from_slice(&text).ok()?;
        Some(FormerMember { cluster_id, coordinator, lies_in })
    })
}

/// Room on the file system of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DiskRoom {
    pub free_bytes: u64,
    /// Below this, proposals are refused.
    pub needed_bytes: u64,
}

/// What is kept free on large disks; on small ones 5 % has to do.
const FREE_BYTES_MIN: u64 = 512 << 20;
const FREE_PER_CENT_MIN: u64 = 5;

impl DiskRoom {
    pub fn is_short(&self) -> bool {
        self.free_bytes < self.needed_bytes
    }

    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let stat = statvfs(dir)?;
        let total = stat.f_blocks * stat.f_frsize;
        let needed_bytes = FREE_BYTES_MIN.min(total * FREE_PER_CENT_MIN / 100);
        Ok(Self { free_bytes: stat.f_bavail * stat.f_frsize, needed_bytes })
    }
}

impl Folder {
    /// Takes the lock of an existing folder; `Ok(None)` where there is no folder.
    ///
    /// # Errors
    /// Somebody else holds it, or it cannot be used.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>, FolderError> {
        if !root.exists() {
            return Ok(None);
        }
        let io = |source| FolderError::Io { path: root.to_owned(), source };
        let lock =
            File::options().create(true).truncate(false).write(true).open(root.join("lock")).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { root: root.to_owned(), lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::Locked { path: root.to_owned() }),
            Err(err) => Err(io(err.into())),
        }
    }

    /// Makes the folder (private to its user) if there is none, and takes its lock.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub(crate) fn create(root: &Path) -> Result<Self, FolderError> {
        let io = |source| FolderError::Io { path: root.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io)?;
        root.parent().filter(|parent| parent.is_dir()).map_or(Ok(()), sync_dir).map_err(io)?;
        let folder = Self::open(root)?;
        folder.ok_or_else(|| io(io::Error::from(io::ErrorKind::NotFound)))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("raft")
    }
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }
    pub(crate) fn high_water(&self) -> PathBuf {
        self.root.join("hwm")
    }
    fn identity_path(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub(crate) fn io(&self, source: io::Error) -> FolderError {
        FolderError::Io { path: self.root.clone(), source }
    }

    pub(crate) fn identity(&self) -> Result<Option<Identity>, FolderError> {
        let path = self.identity_path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        // The format is looked at first: a newer file may have keys that this build does not know.
        let parsed = serde_json::from_slice::<serde_json::Value>(&text);
        let found = parsed.as_ref().ok().and_then(|value| value.get("format")?.as_u64());
        match found {
            Some(found) if found != u64::from(IDENTITY_FORMAT) => {
                Err(FolderError::Format { path, found: found as u32 })
            }
            _ => parsed
                .and_then(serde_json::from_value)
                .map(Some)
                .map_err(|source| FolderError::Identity { path, source }),
        }
    }

    pub(crate) fn write_identity(&self, identity: &Identity) -> Result<(), FolderError> {
        let text = serde_json::to_vec_pretty(identity).expect("an identity always has a JSON form");
        replace_file(&self.identity_path(), &text).map_err(|source| self.io(source))
    }

    /// Moves everything that belongs to the coordinator away, to be looked at by a person. Nothing is deleted, and the
    /// identity goes last: until then the old id is refused because its log is gone.
    pub(crate) fn quarantine(&self) -> Result<PathBuf, FolderError> {
        let stamp =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let target = self.root.join("quarantine").join(stamp.to_string());
        let moved = || -> io::Result<()> {
            std::fs::create_dir_all(&target)?;
            for name in ["raft", "snapshots", "hwm", "identity"] {
                match std::fs::rename(self.root.join(name), target.join(name)) {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                    _ => {}
                }
            }
            sync_dir(&target)?;
            sync_dir(&self.root)
        };
        moved().map_err(|source| self.io(source))?;
        Ok(target)
    }

    /// The newest coordinator that was moved into quarantine here. What only a creation left behind has no identity.
    pub(crate) fn former_member(&self) -> Option<FormerMember> {
        former_member(&self.root)
    }

    /// Whether something of a coordinator is here although no identity is: a creation that did not finish.
    pub(crate) fn has_leftovers(&self) -> bool {
        [self.log(), self.high_water(), self.snapshots()].iter().any(|path| path.exists())
    }
}
