//! Which coordinators are known. Owns the channels to them, the one that answered last, and what was learned.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{AddressError, ClientError, channel, parse_address};

/// Clusters have at most 7 coordinators; a few more for old addresses of moved ones.
const ENDPOINTS_MAX: usize = 16;
/// A cluster changes rarely, and a long-lived client has to notice at last.
const LEARN_EVERY: Duration = Duration::from_secs(30);
/// A whole job with 50 attempts of a big gang, with the last lines of every worker.
const MESSAGE_SIZE_MAX: usize = 64 << 20;

/// One coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    channel: Channel,
}

impl Endpoint {
    pub(crate) fn client(&self) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_SIZE_MAX)
    }
}

#[derive(Debug, Default)]
struct Known {
    urls: Vec<String>,
    /// Made at first use: a channel needs a runtime.
    channels: Vec<Option<Channel>>,
    preferred: usize,
    learned_at: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Pool {
    known: Mutex<Known>,
}

impl Pool {
    pub(crate) fn new(endpoints: &[String]) -> Result<Self, ClientError> {
        let pool = Self { known: Mutex::default() };
        for endpoint in endpoints.iter().filter(|endpoint| !endpoint.trim().is_empty()) {
            pool.add(endpoint)?;
        }
        if pool.len() == 0 { Err(ClientError::NoEndpoint) } else { Ok(pool) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing below panics between two changes, so a poisoned lock holds good data.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.known().urls.len()
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.known().urls.clone()
    }

    pub(crate) fn add(&self, address: &str) -> Result<(), AddressError> {
        let url = parse_address(address)?;
        let mut known = self.known();
        if known.urls.len() < ENDPOINTS_MAX && !known.urls.contains(&url) {
            known.urls.push(url);
            known.channels.push(None);
        }
        Ok(())
    }

    /// The endpoint for the `turn`th try: the one that answered last, then the others in order, round and round.
    pub(crate) fn pick(&self, turn: usize) -> Result<Endpoint, ClientError> {
        let mut known = self.known();
        let index = (known.preferred + turn) % known.urls.len();
        let url = known.urls[index].clone();
        let channel = match &known.channels[index] {
            Some(channel) => channel.clone(),
            None => known.channels[index].insert(channel::connect_lazy(&url)?).clone(),
        };
        Ok(Endpoint { url, channel })
    }

    pub(crate) fn prefer(&self, url: &str) {
        let mut known = self.known();
        if let Some(index) = known.urls.iter().position(|one| one == url) {
            known.preferred = index;
        }
    }

    /// The next try goes elsewhere: this one just broke a stream.
    pub(crate) fn avoid(&self, url: &str) {
        let mut known = self.known();
        if known.urls.get(known.preferred).is_some_and(|one| one == url) {
            known.preferred = (known.preferred + 1) % known.urls.len();
        }
    }

    /// Whether it is time to ask for the other coordinators' addresses; true for one caller only.
    pub(crate) fn learning_is_due(&self) -> bool {
        let mut known = self.known();
        let due = known.learned_at.is_none_or(|at| at.elapsed() >= LEARN_EVERY);
        if due {
            known.learned_at = Some(Instant::now());
        }
        due
    }
}
