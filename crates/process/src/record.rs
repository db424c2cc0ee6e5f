//! How a worker ended: `DIR/exit.json`, fsynced before anybody is told.

use std::io;
use std::path::Path;

use outlast_types::{ExitStatus, WallTime};
use serde::{Deserialize, Serialize};

use crate::files;

const EXIT_VERSION: u32 = 1;

/// The termination record of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFile {
    pub status: ExitStatus,
    pub ended_at: WallTime,
    /// The time of the failed try where the program never started.
    pub started_at: WallTime,
    /// The newest lines of both streams, at most 100 and 16 KiB, invalid UTF-8 replaced.
    pub last_lines: Vec<String>,
    /// What the keeper adds for people; may be empty.
    pub detail: String,
    /// The keeper began to kill the worker because the lease ran out.
    pub fenced: bool,
    /// Processes of the worker that could not be killed in time. Not zero: nothing of it may be called released.
    pub leftovers: u32,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    exit: ExitFile,
}

impl ExitFile {
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        files::write_json(
            &dir.join("exit.json"),
            &Versioned { version: EXIT_VERSION, exit: self.clone() },
            true,
        )
    }

    /// `None`: no record. A newer version is read as far as its fields are known here.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        Ok(files::read_json::<Versioned>(&dir.join("exit.json"))?.map(|file| file.exit))
    }
}
