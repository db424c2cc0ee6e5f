//! The records: plain data, one JSON line each.

use serde::{Deserialize, Serialize};

/// Something at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// `CLOCK_MONOTONIC_RAW` of the machine, in nanoseconds: clients, workers and faults share it.
    pub(crate) at: u64,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum What {
    /// The run enters a part of itself.
    Phase {
        name: String,
    },
    /// A client asks; `op` joins it with its return.
    Call {
        op: u64,
        client: String,
        to: String,
        call: Call,
    },
    Return {
        op: u64,
        answer: Answer,
    },
    Fault {
        id: u32,
        nemesis: String,
        phase: Phase,
        targets: Vec<String>,
        note: String,
        effective: bool,
    },
    /// What one coordinator says of who leads.
    Status {
        from: String,
        by: String,
        leader: String,
        term: u64,
    },
    /// One message of an event stream.
    Watched {
        watcher: String,
        from: String,
        index: u64,
        lost_before: u64,
        events: Vec<Happened>,
    },
    /// A job as it is at the end of the run.
    Final(FinalJob),
    /// The newest sealed checkpoint of a job, every byte of every copy read.
    Verified {
        job: String,
        checkpoint: String,
        restorable: bool,
        intact: bool,
        note: String,
    },
    Kept(Kept),
    Usage(Usage),
    /// A line of a daemon's log that no daemon may write.
    Log {
        daemon: String,
        line: String,
    },
    /// Still there when everything was told to go.
    Left {
        thing: String,
    },
    Work(Work),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub(crate) enum Call {
    /// `name` is unique to `request`.
    Submit {
        request: String,
        name: String,
    },
    Get {
        job: String,
    },
    List,
    Cancel {
        job: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Submitted {
        job: String,
    },
    /// `index`: the log index that it was read at.
    Job {
        seen: JobSeen,
        index: u64,
    },
    Jobs {
        seen: Vec<JobSeen>,
        truncated: bool,
    },
    Cancelled {
        seen: JobSeen,
    },
    NotFound,
    /// A definite no.
    Refused {
        reason: String,
    },
    /// It may have happened, or may still happen.
    Unknown {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobSeen {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) attempts: u64,
}

impl JobSeen {
    pub(crate) fn is_over(&self) -> bool {
        is_over(&self.state)
    }

    /// The number in the id: jobs are numbered in the order of the log.
    pub(crate) fn number(&self) -> u64 {
        self.id.trim_start_matches('j').parse().unwrap_or(0)
    }
}

pub(crate) fn is_over(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Begin,
    End,
    /// It could not be done when its turn came.
    Skipped,
}

/// One event, as a watcher got it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Happened {
    pub(crate) kind: String,
    pub(crate) job: String,
    pub(crate) attempt: String,
    pub(crate) node: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FinalJob {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) attempts: Vec<FinalAttempt>,
    pub(crate) checkpoints: Vec<FinalCheckpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FinalAttempt {
    pub(crate) id: String,
    pub(crate) number: u64,
    pub(crate) phase: String,
    pub(crate) cause: String,
    pub(crate) restore_from: String,
    pub(crate) restore_step: u64,
    /// Newer checkpoints that were not taken, with the reason.
    pub(crate) passed_over: Vec<String>,
}

/// Files of one checkpoint on one node's disk at the end of the run; without names where they were still being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) node: String,
    pub(crate) job: String,
    pub(crate) checkpoint: String,
    pub(crate) files: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FinalCheckpoint {
    pub(crate) id: String,
    pub(crate) step: u64,
    pub(crate) attempt: String,
    pub(crate) state: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) daemon: String,
    /// Before the faults, or after the healing.
    pub(crate) before: bool,
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: u64,
}

/// A line that a worker wrote about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// As [`Record::at`].
    pub(crate) at: u64,
    pub(crate) name: String,
    pub(crate) attempt: String,
    pub(crate) rank: u32,
    pub(crate) pid: u32,
    pub(crate) did: WorkKind,
    pub(crate) step: u64,
    /// Empty: nothing is wrong.
    pub(crate) wrong: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkKind {
    Started,
    /// Goes on from `step`.
    Restored,
    Stepped,
    Saved,
    Sealed,
    Ended,
}
