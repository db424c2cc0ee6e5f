//! Keeps web pages of others out: a browser on this machine may be told to call us, but it cannot name us as its host,
//! nor send JSON or DELETE to us without asking first (and that question is never answered).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use outlast_proto::status::Failure;

use super::answer::HttpFailure;
use crate::seat::Seat;

pub(super) async fn check_host(State(seat): State<Arc<Seat>>, request: Request, next: Next) -> Response {
    match objection(&request, &seat.address) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn objection(request: &Request, advertised: &str) -> Option<Response> {
    let text = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let authority =
        text(header::HOST).or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if !authority.is_some_and(|host| is_ours(host, advertised)) {
        return Some(denied(
            "the request names a host that is not this coordinator's",
            "use its address, or localhost",
        ));
    }
    let is_json = text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    if request.method() == Method::POST && !is_json {
        return Some(denied(
            "a change has to be sent as JSON",
            "set the header `content-type: application/json`",
        ));
    }
    None
}

fn denied(reason: &str, hint: &str) -> Response {
    HttpFailure::from(Failure::Denied { reason: reason.to_owned(), hint: hint.to_owned() }).into_response()
}

/// An address as such cannot be forged by a name server; of names, ours and `localhost` are known.
fn is_ours(host: &str, advertised: &str) -> bool {
    let name = without_port(host);
    name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name == without_port(advertised)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_is_not_ours() {
        for ours in ["127.0.0.1:7400", "localhost", "[::1]:7400", "coord-1:7400", "10.0.0.3"] {
            assert!(is_ours(ours, "coord-1:7400"), "{ours}");
        }
        for foreign in ["evil.example", "evil.example:7400", "localhost.evil.example"] {
            assert!(!is_ours(foreign, "coord-1:7400"), "{foreign}");
        }
    }
}
