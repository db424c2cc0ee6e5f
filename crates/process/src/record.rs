//! How a worker ended: `DIR/exit.json`, fsynced before anybody is told.

use std::io;
use std::path::Path;

use outlast_types::{ExitStatus, WallTime};
use serde::{Deserialize, Serialize};

use crate::files;

const EXIT_VERSION: u32 = 1;

/// Named in a record; that many that cannot be killed are more than any worker has had.
pub(crate) const LEFT_MAX: usize = 1_024;

/// One process of this boot: its pid may be another's later, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftProcess {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

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
    /// Which ones, at most 1024: some have shed what a worker's processes are known by. Older keepers do not say.
    #[serde(default)]
    pub left: Vec<LeftProcess>,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    exit: ExitFile,
}

impl ExitFile {
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let file = Versioned { version: EXIT_VERSION, exit: self.clone() };
        files::write_json(&dir.join("exit.json"), &file)
    }

    /// `None`: no record. A newer version is read as far as its fields are known here.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        Ok(files::read_json::<Versioned>(&dir.join("exit.json"))?.map(|file| file.exit))
    }
}
