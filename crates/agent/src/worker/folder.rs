//! A worker's folder: `workers/ATTEMPT-RANK/`.
//!
//! ```text
//!  worker.json   the assignment, written before anything is started      work/        its files and current folder
//!  keeper/       the keeper's: spec, log, exit record                    restore/     the checkpoint that it starts from
//!  over          the log has its end: nothing to report any more         checkpoint/  for checkpoints that it writes
//!  ready         it said, or its port, that it can serve                 slots/       for staging, where memory will not do
//!  rendezvous    where rank 0's gang meets
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use outlast_types::BootId;
use serde::{Deserialize, Serialize};

use crate::assigned::{Assigned, WorkerKey};
use crate::folder::write_json;

/// What a restarted agent has to know of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    /// A record of another boot is about processes that are gone.
    pub(crate) boot: BootId,
    pub(crate) assigned: Assigned,
    pub(crate) socket: PathBuf,
}

impl Record {
    pub(crate) const VERSION: u32 = 1;
}

#[derive(Clone, Debug)]
pub(crate) struct WorkerDir {
    root: PathBuf,
}

impl WorkerDir {
    pub(crate) fn new(workers: &Path, key: &WorkerKey) -> Self {
        Self { root: workers.join(key.file_name()) }
    }
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn keeper(&self) -> PathBuf {
        self.root.join("keeper")
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }
    pub(crate) fn restore(&self) -> PathBuf {
        self.root.join("restore")
    }
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }
    pub(crate) fn slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// Makes the empty folders and writes the record, durably: from here on a restarted agent finds the worker.
    pub(crate) fn create(&self, record: &Record) -> io::Result<()> {
        self.clear()?;
        for dir in [self.root.clone(), self.keeper(), self.work(), self.checkpoint()] {
            crate::folder::private_dir(&dir).map_err(io::Error::other)?;
        }
        self.write_record(record)
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        write_json(&self.root.join("worker.json"), record)
    }

    /// `None`: there is none, so nothing was ever started.
    ///
    /// # Errors
    /// One that cannot be read, or is of a newer version: its worker may run.
    pub(crate) fn read_record(&self) -> io::Result<Option<Record>> {
        let bytes = match fs::read(self.root.join("worker.json")) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let record: Record = serde_json::from_slice(&bytes)?;
        if record.version > Record::VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is of a newer version"));
        }
        Ok(Some(record))
    }

    /// Outlives the agent, which is enough: no worker outlives the machine's end.
    pub(crate) fn mark_ready(&self) -> io::Result<()> {
        fs::write(self.root.join("ready"), b"")
    }

    /// As `mark_ready`: where the gang meets, for a later agent to tell again.
    pub(crate) fn note_rendezvous(&self, address: &str) -> io::Result<()> {
        fs::write(self.root.join("rendezvous"), address)
    }

    pub(crate) fn rendezvous(&self) -> Option<String> {
        fs::read_to_string(self.root.join("rendezvous")).ok().filter(|address| !address.is_empty())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.root.join("ready").exists()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.root.join("over").exists()
    }

    /// The log has the worker's end. Its files go, its log stays. First the files: a full disk may have no room for the
    /// mark before they are gone. One that cannot be removed keeps neither the others nor the mark back.
    pub(crate) fn mark_over(&self) -> io::Result<()> {
        if let Ok(Some(record)) = self.read_record() {
            let _ = fs::remove_file(&record.socket);
        }
        let removed =
            [self.work(), self.restore(), self.checkpoint(), self.slots()].map(|dir| remove_dir(&dir));
        fs::write(self.root.join("over"), b"")?;
        removed.into_iter().collect()
    }

    pub(crate) fn clear(&self) -> io::Result<()> {
        remove_dir(&self.root)
    }
}

/// Removes a folder with all in it; none is fine.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}
