//! Who may act in a keeper's folder: the keeper while it lives, else one adopter. The kernel frees the lock with its holder's
//! life, so no pid has to be compared.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("somebody else holds it")]
    Held,
    #[error("an agent has given this worker up")]
    Abandoned,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Held until dropped.
pub(crate) struct KeeperLock {
    _file: File,
}

impl KeeperLock {
    /// For a keeper at its start.
    pub(crate) fn take(dir: &Path) -> Result<Self, LockError> {
        let lock = Self::take_any(dir)?;
        if dir.join("abandoned").exists() { Err(LockError::Abandoned) } else { Ok(lock) }
    }

    /// For an adopter that found nobody: a keeper that was only slow to start finds the mark, and leaves.
    pub(crate) fn take_and_abandon(dir: &Path) -> Result<Self, LockError> {
        let lock = Self::take_any(dir)?;
        fs::write(dir.join("abandoned"), b"")?;
        Ok(lock)
    }

    fn take_any(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join("keeper.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held),
            Err(err) => Err(LockError::Io(err.into())),
        }
    }
}
