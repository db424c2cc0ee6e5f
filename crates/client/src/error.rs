//! Why a call failed, by what the reader must do; and the words for it.

use std::time::Duration;

use outlast_proto::status::Failure;
use tonic::Status;

use crate::AddressError;

/// One coordinator and what came of asking it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub endpoint: String,
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Mend the request.
    #[error("{reason}")]
    Rejected { reason: String, hint: String },
    #[error("{what} does not exist")]
    NotFound { what: String, hint: String },
    /// Something stands in the way; read again.
    #[error("{reason}")]
    Conflict { reason: String, hint: String },
    #[error("{reason}")]
    Denied { reason: String, hint: String },
    /// Nobody served the request in time. A change may have taken effect all the same: repeat it to be sure.
    #[error("{}", unreachable(*.waited, *.answered))]
    Unreachable {
        tried: Vec<Tried>,
        waited: Duration,
        /// Some coordinator answered, but could not serve (no leader, overload).
        answered: bool,
        hint: String,
    },
    #[error("no coordinator is named")]
    NoEndpoint,
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The file that was being sent could not be read.
    #[error("the bundle {path:?} cannot be read")]
    Bundle {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The cluster is broken, or speaks another version.
    #[error("{reason}")]
    Failed { reason: String },
}

fn unreachable(waited: Duration, answered: bool) -> String {
    let waited = format!("{:.1} s", waited.as_secs_f64());
    if answered {
        format!("no coordinator could serve the request within {waited}")
    } else {
        format!("no coordinator could be reached within {waited}")
    }
}

impl ClientError {
    /// What to do next; empty where the error says it all.
    pub fn hint(&self) -> &str {
        match self {
            ClientError::Rejected { hint, .. }
            | ClientError::NotFound { hint, .. }
            | ClientError::Conflict { hint, .. }
            | ClientError::Denied { hint, .. }
            | ClientError::Unreachable { hint, .. } => hint,
            ClientError::NoEndpoint
            | ClientError::Address(_)
            | ClientError::Bundle { .. }
            | ClientError::Failed { .. } => "",
        }
    }
}

/// What an answer means for the call.
pub(crate) enum Verdict {
    /// Asking again, here or elsewhere, makes sense.
    Again {
        why: String,
        hint: String,
        retry_after_ms: u64,
        answered: bool,
    },
    Final(ClientError),
    /// This server is broken; another may not be.
    Broken {
        why: String,
    },
}

impl From<&Status> for Verdict {
    fn from(status: &Status) -> Self {
        let failure = Failure::from_status(status);
        let hint = failure.hint().to_owned();
        let retry_after_ms = failure.retry_after_ms();
        match failure {
            Failure::Rejected { reason, hint } => Verdict::Final(ClientError::Rejected { reason, hint }),
            Failure::NotFound { what, hint } => Verdict::Final(ClientError::NotFound { what, hint }),
            Failure::Conflict { reason, hint } => Verdict::Final(ClientError::Conflict { reason, hint }),
            Failure::Denied { reason, hint } => Verdict::Final(ClientError::Denied { reason, hint }),
            Failure::Fenced { reason } => Verdict::Final(ClientError::Conflict { reason, hint }),
            Failure::Unavailable { .. } | Failure::Exhausted { .. } | Failure::Unknown { .. } => {
                Verdict::Again { why: why(status), hint, retry_after_ms, answered: !is_transport(status) }
            }
            Failure::Fatal { .. } => Verdict::Broken { why: why(status) },
        }
    }
}

/// The connection failed, rather than the server at its other end.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The innermost reason: "tcp connect error" tells nobody anything, "connection refused" does.
fn why(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = source {
        innermost = Some(error);
        source = error.source();
    }
    let text = innermost.map_or_else(|| status.message().to_owned(), ToString::to_string);
    let plain = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    if plain.is_empty() { format!("{:?}", status.code()).to_lowercase() } else { plain }
}
