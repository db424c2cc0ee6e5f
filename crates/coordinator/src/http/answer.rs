//! Failures as JSON: `{error, reason, hint}`, with the status that HTTP has for their class.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use outlast_proto::status::Failure;
use serde::Serialize;

/// An answer of a verb.
pub(super) type Answer<T> = Result<Json<T>, HttpFailure>;

pub(super) struct HttpFailure(Failure);

impl From<Failure> for HttpFailure {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

#[derive(Serialize)]
pub(super) struct ErrorBody {
    error: &'static str,
    reason: String,
    hint: String,
}

pub(super) fn body(failure: &Failure) -> Json<ErrorBody> {
    Json(ErrorBody { error: class(failure).1, reason: failure.to_string(), hint: failure.hint().to_owned() })
}

fn class(failure: &Failure) -> (StatusCode, &'static str) {
    match failure {
        Failure::Rejected { .. } => (StatusCode::BAD_REQUEST, "rejected"),
        Failure::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
        Failure::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
        Failure::Fenced { .. } => (StatusCode::CONFLICT, "fenced"),
        Failure::Denied { .. } => (StatusCode::FORBIDDEN, "denied"),
        Failure::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        Failure::Exhausted { .. } => (StatusCode::TOO_MANY_REQUESTS, "exhausted"),
        Failure::Unknown { .. } => (StatusCode::GATEWAY_TIMEOUT, "unknown"),
        Failure::Fatal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "fatal"),
    }
}

impl IntoResponse for HttpFailure {
    fn into_response(self) -> Response {
        let mut response = (class(&self.0).0, body(&self.0)).into_response();
        let after_ms = self.0.retry_after_ms();
        if after_ms > 0 {
            // In whole seconds, and never "at once".
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1_000)));
        }
        response
    }
}
