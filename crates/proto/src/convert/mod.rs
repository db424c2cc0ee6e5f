//! Conversions between wire and domain types. Inward they check (`TryFrom`, with an error that names the field);
//! outward they take every field apart, so that a new one forces a decision.

mod observation;
mod registration;
mod soft;

use std::fmt::Display;
use std::str::FromStr;

pub use soft::{ReportedDone, ReportedProgress, ReportedReceipt, shard_task};

/// A wire field that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: {reason}")]
pub struct FieldError {
    pub field: &'static str,
    pub reason: String,
}

impl FieldError {
    pub fn new(field: &'static str, reason: impl Display) -> Self {
        Self { field, reason: reason.to_string() }
    }
    pub fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

impl From<FieldError> for tonic::Status {
    fn from(error: FieldError) -> Self {
        crate::status::Failure::Rejected { reason: error.to_string(), hint: String::new() }.into()
    }
}

/// Parses a text field.
///
/// # Errors
/// Names the field and what the type expects.
pub fn parse<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, FieldError> {
    text.parse().map_err(|error| FieldError::new(field, error))
}
