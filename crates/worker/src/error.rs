//! What can go wrong, one enum an operation. Every one can say whether the attempt is over (`is_fenced`).

use std::path::PathBuf;

use outlast_proto::status::Failure;
use outlast_staging::PartsError;
use tonic::Status;

/// How a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Another attempt took over, or this one was stopped: nothing it does counts any more. Exit.
    #[error("this attempt is over ({reason}); exit and let the current one go on")]
    Fenced { reason: String },
    /// No useful answer for as long as an agent's restart may take.
    #[error("no answer from the agent for {waited_s} s; is `outlast agent` running on this node?")]
    Unavailable {
        waited_s: u64,
        #[source]
        source: Box<Status>,
    },
    /// The agent refuses; the same call would be refused again.
    #[error("the agent refuses: {reason}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    Refused {
        reason: String,
        hint: String,
        #[source]
        source: Box<Status>,
    },
    /// The answer does not fit the protocol: agent and SDK are of different versions.
    #[error(
        "the agent's answer has an unusable {field} ({value:?}); agent and SDK seem to be of different versions"
    )]
    BadAnswer { field: &'static str, value: String },
}

impl CallError {
    /// Whether this attempt is over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, CallError::Fenced { .. })
    }

    /// A status that another try cannot mend.
    pub(crate) fn from_final(status: Status) -> Self {
        match Failure::from_status(&status) {
            Failure::Fenced { reason } => CallError::Fenced { reason },
            failure => CallError::Refused {
                reason: failure.to_string(),
                hint: failure.hint().to_owned(),
                source: Box::new(status),
            },
        }
    }
}

/// Failed to become known to the agent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the worker's socket {} cannot be used: {reason}", socket.display())]
    Socket { socket: PathBuf, reason: String },
    #[error("cannot start the thread that talks to the agent")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ConnectError {
    /// Whether this attempt is over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, ConnectError::Call(call) if call.is_fenced())
    }
}

/// Failed to take a report. An agent that cannot be reached is no error: reports are dropped meanwhile.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReportError {
    /// Another attempt took over, or this one was stopped: nothing it does counts any more. Exit.
    #[error("this attempt is over ({reason}); exit and let the current one go on")]
    Fenced { reason: String },
    #[error("{count} metrics in one report, but at most {max} are taken; report fewer")]
    TooManyMetrics { count: usize, max: usize },
}

impl ReportError {
    /// Whether this attempt is over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, ReportError::Fenced { .. })
    }
}

/// Failed to hand a checkpoint over. Unless fenced, training may go on and try again later.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("the checkpoint folder {} cannot be named to the agent: its path is not UTF-8", directory.display())]
    Directory { directory: PathBuf },
    #[error("the checkpoint folder {} cannot be made absolute", directory.display())]
    Absolute {
        directory: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The memory that the agent gave could not be filled.
    #[error("the parts cannot be copied into {}", path.display())]
    Slot {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("step {step} is not written after {waited_s} s; it may still be")]
    TimedOut { step: u64, waited_s: u64 },
    /// Earlier checkpoints are still being written: no rank saves this step. Nothing is wrong.
    #[error("step {step} is skipped: earlier checkpoints are still being written")]
    Skipped { step: u64 },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl SaveError {
    /// Whether this attempt is over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, SaveError::Call(call) if call.is_fenced())
    }

    /// Whether the step was left out because earlier ones are still being written.
    pub fn is_skipped(&self) -> bool {
        matches!(self, SaveError::Skipped { .. })
    }
}

/// Failed to learn what became of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error(
        "checkpoint {checkpoint} is neither sealed nor given up after {waited_s} s; it may still be sealed"
    )]
    TimedOut { checkpoint: String, waited_s: u64 },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl WaitError {
    /// Whether this attempt is over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, WaitError::Call(call) if call.is_fenced())
    }
}
