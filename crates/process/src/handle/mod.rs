//! The agent's side: starting keepers, finding them again, talking to them.

mod adopt;
mod call;
mod lock;
mod spawn;

use std::path::{Path, PathBuf};

use outlast_types::BootTime;

pub use adopt::{AdoptError, Adopted};
pub use call::CallError;
pub(crate) use lock::{KeeperLock, LockError};
pub use spawn::SpawnError;

use crate::record::ExitFile;
use crate::wire::{KeeperStatus, Reply, Request};

/// A running keeper. Dropping the handle changes nothing: the keeper and its worker go on, and `adopt` finds them.
#[derive(Clone, Debug)]
pub struct Keeper {
    dir: PathBuf,
    pid: u32,
    worker_pid: u32,
}

/// The keeper died without leaving a record: `Keeper::adopt` on its folder kills what is left of the worker.
#[derive(Debug, thiserror::Error)]
#[error("the keeper in {} died and left no exit record", dir.display())]
pub struct KeeperGone {
    pub dir: PathBuf,
    #[source]
    pub source: Option<CallError>,
}

impl Keeper {
    fn new(dir: &Path, status: &KeeperStatus) -> Self {
        Self { dir: dir.to_owned(), pid: status.keeper_pid, worker_pid: status.worker_pid }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn worker_pid(&self) -> u32 {
        self.worker_pid
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// # Errors
    /// When the keeper is gone or does not answer in 2 s.
    pub fn status(&self) -> Result<KeeperStatus, CallError> {
        match call::call(&self.dir, &Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(call::unexpected(&other)),
        }
    }

    /// Raises the lease deadline of an exclusive worker; an earlier one than the present changes nothing.
    ///
    /// # Errors
    /// When the keeper is gone or does not answer in 2 s.
    pub fn set_deadline(&self, deadline: BootTime) -> Result<(), CallError> {
        self.order(&Request::Deadline { boot_ms: deadline.0 })
    }

    /// SIGTERM to the worker's process group, SIGKILL to everything of it after the grace; 0 kills at once. Returns when
    /// the keeper has the order; the end comes through `wait_exit`. A second call can only shorten the grace.
    ///
    /// # Errors
    /// When the keeper is gone or does not answer in 2 s.
    pub fn stop(&self, grace_ms: u64) -> Result<(), CallError> {
        self.order(&Request::Stop { grace_ms })
    }

    /// Waits for the worker's end, for as long as it takes: meant for a thread of its own. The keeper stays for a minute
    /// after that, or until `done`.
    ///
    /// # Errors
    /// When the keeper died without a record.
    pub fn wait_exit(&self) -> Result<ExitFile, KeeperGone> {
        let source = match call::watch(&self.dir) {
            Ok(exit) => return Ok(exit),
            Err(err) => err,
        };
        // It may have written the record, lingered and gone before we asked.
        match ExitFile::read(&self.dir) {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(KeeperGone { dir: self.dir.clone(), source: Some(source) }),
        }
    }

    /// The agent has the exit record and the keeper may go. Harmless when it is gone already.
    ///
    /// # Errors
    /// When the worker still runs, or the keeper does not answer.
    pub fn done(&self) -> Result<(), CallError> {
        match self.order(&Request::Done) {
            Err(CallError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    fn order(&self, request: &Request) -> Result<(), CallError> {
        match call::call(&self.dir, request)? {
            Reply::Ok => Ok(()),
            other => Err(call::unexpected(&other)),
        }
    }
}
