//! Finds a keeper again after a restart of the agent, or makes sure that nothing of it is left (A6, invariant 30).

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::call::{self, CallError};
use super::{Keeper, KeeperLock, LockError};
use crate::cgroup::Cgroup;
use crate::record::{ExitFile, LeftProcess};
use crate::spec::SpecFile;
use crate::wire::{Reply, Request};
use crate::{boot_now, procfs};

/// A keeper that holds its lock answers within this, or it is stopped (SIGSTOP, a debugger).
const ANSWER_WITHIN_MS: u64 = 5_000;
/// Killed processes are gone within milliseconds unless they hang in the kernel.
const END_WITHIN_MS: u64 = 5_000;
/// For another look at those that hang: whoever came free dies of it at once.
const LOOK_WITHIN_MS: u64 = 200;
/// Between two kills, first and at most: each is a walk over all of `/proc`.
const KILL_AGAIN_MIN: Duration = Duration::from_millis(2);
const KILL_AGAIN_MAX: Duration = Duration::from_millis(50);

/// What became of a worker while nobody looked.
#[derive(Debug)]
pub enum Adopted {
    /// Keeper and worker go on.
    Running(Keeper),
    /// The worker has ended and here is its record. (The keeper may still be there: `done` is not needed.)
    Ended(ExitFile),
    /// The keeper died without a record. Nothing of the worker is left.
    Gone,
}

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("{} is not the folder of a keeper", dir.display())]
    NotAKeeper { dir: PathBuf },
    #[error(
        "the keeper's folder {} cannot be read; should that stay so, end what has OUTLAST_KEEPER of this worker in its \
         environment, remove the worker's folder, and restart the agent",
        dir.display()
    )]
    Unreadable {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The keeper lives and so, probably, does its worker.
    #[error("the keeper in {} lives but does not answer; is it stopped?", dir.display())]
    Unresponsive {
        dir: PathBuf,
        #[source]
        source: CallError,
    },
    /// Nothing of the worker may be called released.
    #[error("{count} processes of the worker in {} could not be killed", dir.display())]
    Leftovers { dir: PathBuf, count: usize },
}

impl Keeper {
    /// Asks what became of the keeper in `dir`. Where it is dead, kills what is left of its worker first (cgroup, and every
    /// process that carries its mark). Takes 5 s at most. Afterwards a keeper that had not begun yet cannot begin.
    ///
    /// # Errors
    /// See `AdoptError`.
    pub fn adopt(dir: &Path) -> Result<Adopted, AdoptError> {
        let absolute = std::path::absolute(dir).map_err(|source| unreadable(dir, source))?;
        let dir = absolute.as_path();
        let until = boot_now().plus(ANSWER_WITHIN_MS);
        loop {
            if let Some(exit) = ExitFile::read(dir).map_err(|source| unreadable(dir, source))? {
                return Ok(Adopted::Ended(exit));
            }
            let source = match call::call(dir, &Request::Status) {
                Ok(Reply::Status(status)) if !status.ended => {
                    return Ok(Adopted::Running(Self::new(dir, &status)));
                }
                // Ended without a record on the disk: it is about to be written, or the disk is full.
                Ok(Reply::Status(_)) => match call::watch(dir) {
                    Ok(exit) => return Ok(Adopted::Ended(exit)),
                    Err(err) => err,
                },
                Ok(other) => call::unexpected(&other),
                Err(err) => err,
            };
            match KeeperLock::take_and_abandon(dir) {
                Ok(_lock) => return gone(dir),
                Err(LockError::Held | LockError::Abandoned) => {}
                Err(LockError::Io(source)) => return Err(unreadable(dir, source)),
            }
            if boot_now() >= until {
                return Err(AdoptError::Unresponsive { dir: dir.to_owned(), source });
            }
            sleep(Duration::from_millis(10));
        }
    }
}

impl Keeper {
    /// Another look at a worker that has ended but for processes that could not be killed: kills them again. `Ok`: nothing
    /// of it is alive. Takes a moment.
    ///
    /// # Errors
    /// `Leftovers` while some are still there; others as for `adopt`.
    pub fn end_leftovers(dir: &Path, exit: &ExitFile) -> Result<(), AdoptError> {
        end_within(dir, &exit.left, LOOK_WITHIN_MS)
    }
}

/// With the lock held: the keeper is dead, for good.
fn gone(dir: &Path) -> Result<Adopted, AdoptError> {
    // It may have written its record and died between our first look and the lock.
    if let Some(exit) = ExitFile::read(dir).map_err(|source| unreadable(dir, source))? {
        return Ok(Adopted::Ended(exit));
    }
    end_remains(dir).map(|()| Adopted::Gone)
}

/// Kills whatever a dead keeper's worker left behind, and waits for its end.
pub(super) fn end_remains(dir: &Path) -> Result<(), AdoptError> {
    end_within(dir, &[], END_WITHIN_MS)
}

/// What belongs to the worker in `dir`: by its cgroup, by its mark, and by name.
fn end_within(dir: &Path, left: &[LeftProcess], within_ms: u64) -> Result<(), AdoptError> {
    let file = SpecFile::read(dir).map_err(|source| unreadable(dir, source))?;
    let Some(file) = file else { return Err(AdoptError::NotAKeeper { dir: dir.to_owned() }) };
    let cgroup = file.spec.cgroup.map(Cgroup::existing);
    let until = boot_now().plus(within_ms);
    let mut pause = KILL_AGAIN_MIN;
    loop {
        let mut found = procfs::marked(&file.mark);
        found.extend(procfs::alive(left));
        found.sort_unstable_by_key(|stat| stat.pid);
        found.dedup_by_key(|stat| stat.pid);
        let members = cgroup.as_ref().map_or(0, |cgroup| cgroup.pids().len());
        let count = found.len().max(members);
        if count == 0 {
            if let Some(cgroup) = cgroup {
                cgroup.remove();
            }
            return Ok(());
        }
        if boot_now() >= until {
            return Err(AdoptError::Leftovers { dir: dir.to_owned(), count });
        }
        if let Some(cgroup) = &cgroup {
            cgroup.kill_all();
        }
        found.iter().for_each(procfs::kill_exactly);
        sleep(pause);
        pause = (pause * 2).min(KILL_AGAIN_MAX);
    }
}

fn unreadable(dir: &Path, source: io::Error) -> AdoptError {
    AdoptError::Unreadable { dir: dir.to_owned(), source }
}
