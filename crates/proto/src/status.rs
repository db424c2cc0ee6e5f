//! The one place where failures become gRPC statuses, and statuses failures again.
//!
//! A failure says what happened; `hint` says what to do next. Both travel as metadata, so that every client shows the
//! same words.

use outlast_control::state::Refusal;
use outlast_types::SpecError;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

const HINT: &str = "outlast-hint";
const KIND: &str = "outlast-reason";
const RETRY_AFTER: &str = "outlast-retry-after-ms";

/// Classes by what the reader must do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Mend the request.
    #[error("{reason}")]
    Rejected { reason: String, hint: String },
    #[error("{what} does not exist")]
    NotFound { what: String, hint: String },
    /// Read again: something stands in the way, or the state moved on.
    #[error("{reason}")]
    Conflict { reason: String, hint: String },
    /// Only the current attempt, registration or leader may do this; whoever gets it is over.
    #[error("{reason}")]
    Fenced { reason: String },
    #[error("{reason}")]
    Denied { reason: String, hint: String },
    /// Try again, perhaps elsewhere.
    #[error("{reason}")]
    Unavailable { reason: String, hint: String, retry_after_ms: u64 },
    /// A bound is reached; try again later.
    #[error("{reason}")]
    Exhausted { reason: String, hint: String, retry_after_ms: u64 },
    /// The request may or may not have taken effect; ask, or repeat it with the same request id.
    #[error("{reason}")]
    Unknown { reason: String, hint: String },
    /// This server stops, or is broken.
    #[error("{reason}")]
    Fatal { reason: String },
}

impl Failure {
    fn parts(&self) -> (Code, &'static str, &str, u64) {
        match self {
            Failure::Rejected { hint, .. } => (Code::InvalidArgument, "REJECTED", hint, 0),
            Failure::NotFound { hint, .. } => (Code::NotFound, "NOT_FOUND", hint, 0),
            Failure::Conflict { hint, .. } => (Code::Aborted, "CONFLICT", hint, 0),
            Failure::Fenced { .. } => (Code::FailedPrecondition, "FENCED", "", 0),
            Failure::Denied { hint, .. } => (Code::PermissionDenied, "DENIED", hint, 0),
            Failure::Unavailable { hint, retry_after_ms, .. } => {
                (Code::Unavailable, "UNAVAILABLE", hint, *retry_after_ms)
            }
            Failure::Exhausted { hint, retry_after_ms, .. } => {
                (Code::ResourceExhausted, "EXHAUSTED", hint, *retry_after_ms)
            }
            Failure::Unknown { hint, .. } => (Code::DeadlineExceeded, "UNKNOWN", hint, 0),
            Failure::Fatal { .. } => (Code::Internal, "FATAL", "", 0),
        }
    }

    /// What to do next; empty where there is nothing to say.
    pub fn hint(&self) -> &str {
        self.parts().2
    }

    /// Milliseconds after which a retry makes sense; 0 where none was named.
    pub fn retry_after_ms(&self) -> u64 {
        self.parts().3
    }

    /// Whether the same request may be sent again, here or elsewhere.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Failure::Unavailable { .. } | Failure::Exhausted { .. } | Failure::Unknown { .. })
    }

    /// Reads a status, whoever made it.
    pub fn from_status(status: &Status) -> Self {
        let text = |key: &str| header(status.metadata(), key);
        let reason = status.message().to_owned();
        let hint = text(HINT);
        let retry_after_ms = text(RETRY_AFTER).parse().unwrap_or(0);
        match (status.code(), text(KIND).as_str()) {
            (Code::FailedPrecondition, "FENCED") => Failure::Fenced { reason },
            (Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition, _) => {
                Failure::Rejected { reason, hint }
            }
            (Code::NotFound, _) => {
                let what = reason.strip_suffix(" does not exist").unwrap_or(&reason).to_owned();
                Failure::NotFound { what, hint }
            }
            (Code::Aborted | Code::AlreadyExists, _) => Failure::Conflict { reason, hint },
            (Code::PermissionDenied | Code::Unauthenticated, _) => Failure::Denied { reason, hint },
            (Code::ResourceExhausted, _) => Failure::Exhausted { reason, hint, retry_after_ms },
            (Code::DeadlineExceeded | Code::Cancelled | Code::Unknown, _) => {
                Failure::Unknown { reason, hint }
            }
            (Code::Unavailable, _) => Failure::Unavailable { reason, hint, retry_after_ms },
            _ => Failure::Fatal { reason },
        }
    }
}

fn header(metadata: &MetadataMap, key: &str) -> String {
    let value = metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    percent_decode(value)
}

/// gRPC metadata holds visible ASCII only; everything else is written as `%XX`, as gRPC does with its own message.
fn percent_encode(text: &str) -> String {
    let plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'%';
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, kind, hint, retry_after_ms) = failure.parts();
        let mut status = Status::new(code, failure.to_string());
        let metadata = status.metadata_mut();
        metadata.insert(KIND, MetadataValue::from_static(kind));
        let mut insert = |key: &'static str, text: &str| {
            if let Ok(value) = MetadataValue::<Ascii>::try_from(percent_encode(text).as_str()) {
                metadata.insert(key, value);
            }
        };
        if !hint.is_empty() {
            insert(HINT, hint);
        }
        if retry_after_ms > 0 {
            insert(RETRY_AFTER, &retry_after_ms.to_string());
        }
        status
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let hint = String::new();
        match refusal {
            Refusal::NotFound { what } => Failure::NotFound { what, hint },
            Refusal::Invalid { reason } => Failure::Rejected { reason, hint },
            Refusal::Conflict { reason } => Failure::Conflict { reason, hint },
            Refusal::Fenced { reason } => Failure::Fenced { reason },
            Refusal::Exhausted { reason } => Failure::Exhausted { reason, hint, retry_after_ms: 1_000 },
        }
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        let hint = "mend the job file; `outlast job submit --help` shows an example".to_owned();
        Failure::Rejected { reason: error.to_string(), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_survive_the_wire_with_their_hints() {
        let hint = "start one: `outlast agent` – 50 % done".to_owned();
        let all = [
            Failure::Rejected { reason: "bad".into(), hint: hint.clone() },
            Failure::NotFound { what: "job x".into(), hint: hint.clone() },
            Failure::Conflict { reason: "moved".into(), hint: hint.clone() },
            Failure::Fenced { reason: "over".into() },
            Failure::Denied { reason: "no".into(), hint: hint.clone() },
            Failure::Unavailable { reason: "no leader".into(), hint: hint.clone(), retry_after_ms: 250 },
            Failure::Exhausted { reason: "full".into(), hint: hint.clone(), retry_after_ms: 40 },
            Failure::Unknown { reason: "timed out".into(), hint },
            Failure::Fatal { reason: "disk".into() },
        ];
        for failure in all {
            assert_eq!(Failure::from_status(&Status::from(failure.clone())), failure);
        }
    }
}
