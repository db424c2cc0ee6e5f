//! `ControlService`: the operator's API, answered by every coordinator. Reads are confirmed by a quorum round and then
//! answered from the own state; changes go to the leader with their request id.
//!
//! Each group of verbs has its file; HTTP calls the same functions.

mod backup;
mod bundle;
mod checkpoints;
mod cluster;
mod events;
mod explain;
mod jobs;
mod log_reader;
mod logs;
mod nodes;
mod room;
mod service;
mod shards;
mod status;
mod upkeep;
mod upload;
mod verify;

use std::sync::Arc;

use outlast_control::state::{ClusterState, Job};
use outlast_proto::status::Failure;
use outlast_types::{Actor, RequestId};
use tokio::sync::Semaphore;

use crate::seat::Seat;
use bundle::BundleCache;

/// Bundles that are received at a time: each takes up to 256 MiB of the data folder.
const UPLOADS_MAX: usize = 4;
/// Log streams that are served at a time; a followed one stays as long as its reader.
const LOG_STREAMS_MAX: usize = 256;
/// Backups that are sent at a time: each takes as much memory as the state has bytes.
const BACKUPS_MAX: usize = 2;
/// Watchers of events.
const WATCHERS_MAX: usize = 1_024;
/// Shards that are passed on at a time: each holds some MiB, and shares this coordinator's network with the heartbeats.
const SHARD_STREAMS_MAX: usize = 8;
/// What a client may call itself.
const ACTOR_CHARS_MAX: usize = 128;

#[derive(Clone)]
pub(crate) struct ControlHandler {
    pub(crate) seat: Arc<Seat>,
    bundles: Arc<BundleCache>,
    uploads: Arc<Semaphore>,
    log_streams: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    shard_streams: Arc<Semaphore>,
}

impl ControlHandler {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        Self {
            seat,
            bundles: Arc::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            log_streams: Arc::new(Semaphore::new(LOG_STREAMS_MAX)),
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            backups: Arc::new(Semaphore::new(BACKUPS_MAX)),
            shard_streams: Arc::new(Semaphore::new(SHARD_STREAMS_MAX)),
        }
    }
}

fn rejected(reason: impl ToString, hint: &str) -> Failure {
    Failure::Rejected { reason: reason.to_string(), hint: hint.to_owned() }
}

fn exhausted(reason: &str) -> Failure {
    Failure::Exhausted {
        reason: reason.to_owned(),
        hint: "try again later".to_owned(),
        retry_after_ms: 1_000,
    }
}

/// The client's request id, or a fresh one where it gave none (its retries are then changes of their own).
fn request_id(text: &str) -> Result<RequestId, Failure> {
    if text.is_empty() {
        let id = format!("made-{}", random_hex()?);
        return Ok(RequestId::new(id).expect("letters and digits only"));
    }
    RequestId::new(text).map_err(|error| rejected(error, "send a new random id with each request"))
}

/// 128 random bits, as text.
pub(crate) fn random_hex() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    outlast_host::random::fill(&mut bytes)
        .map_err(|error| Failure::Fatal { reason: format!("the system has no random numbers: {error}") })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who the client says that it is.
fn operator(name: &str) -> Actor {
    Actor::Operator(operator_name(name))
}

fn operator_name(name: &str) -> String {
    let name = if name.is_empty() { "unknown" } else { name };
    name.chars().take(ACTOR_CHARS_MAX).collect()
}

fn find_job<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Job, Failure> {
    state.job_by_name_or_id(text).ok_or_else(|| Failure::NotFound {
        what: format!("job {text}"),
        hint: "`outlast job list` shows the jobs".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_id_gets_one_and_a_bad_one_is_refused() {
        assert_ne!(request_id("").expect("made"), request_id("").expect("made"));
        assert_eq!(request_id("r-1").expect("valid").as_str(), "r-1");
        assert!(request_id("with a blank").is_err());
    }

    #[test]
    fn a_long_name_is_cut_at_a_letter() {
        assert_eq!(operator(&"é".repeat(200)), Actor::Operator("é".repeat(ACTOR_CHARS_MAX)));
    }
}
