//! What agent and keeper say to each other over `keeper.sock`: one JSON value a line.

use outlast_types::WallTime;
use serde::{Deserialize, Serialize};

use crate::record::ExitFile;

/// Longest request line that a keeper reads; all of ours are far below.
pub(crate) const REQUEST_BYTES_MAX: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Request {
    Status,
    /// Raises the lease deadline; an older one changes nothing, so repeats and reorderings are harmless.
    Deadline {
        boot_ms: u64,
    },
    Stop {
        grace_ms: u64,
    },
    /// Answered once, when the worker has ended.
    Watch,
    /// The agent has the exit record; the keeper may go.
    Done,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok,
    Status(KeeperStatus),
    Exit(ExitFile),
    Refused(String),
}

/// What a keeper says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    pub keeper_pid: u32,
    pub worker_pid: u32,
    pub started_at: WallTime,
    /// The worker has ended; its record is in the folder.
    pub ended: bool,
    /// The lease deadline in force, on `CLOCK_BOOTTIME`.
    pub deadline_boot_ms: Option<u64>,
}

/// The first line of a keeper, on its standard output: the worker runs, or why not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ready {
    Started(KeeperStatus),
    NotStarted(String),
}
