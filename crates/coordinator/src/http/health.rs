//! Is the process alive, and should it get traffic.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::seat::Seat;

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: a member that has applied something and knows who leads.
pub(super) async fn readyz(State(seat): State<Arc<Seat>>) -> (StatusCode, String) {
    match why_not_ready(&seat) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn why_not_ready(seat: &Seat) -> Option<String> {
    let member = match seat.member() {
        Ok(member) => member,
        Err(failure) => return Some(format!("{failure}: {}", failure.hint())),
    };
    if member.state(|state| state.config.is_none()) {
        return Some("the state of the cluster has not arrived yet".to_owned());
    }
    if member.consensus.leadership().borrow().leader.is_none() {
        return Some("no leader is known at the moment".to_owned());
    }
    if member.leads() && member.office().is_none() {
        return Some("just elected: its first entry is not committed yet".to_owned());
    }
    None
}
