//! Connections to other coordinators and to agents, made when first needed and shared by all calls.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use outlast_proto::peer::v1::peer_service_client::PeerServiceClient;
use outlast_proto::relay::v1::relay_service_client::RelayServiceClient;
use outlast_proto::status::Failure;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::limits::MESSAGE_BYTES_MAX;

/// Connections kept; agents come and go, and a connection is cheap to make again.
const CHANNELS_MAX: usize = 4_096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A dead connection is found within two seconds, well inside a lease.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Peers {
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    fn channel(&self, address: &str) -> Result<Channel, Failure> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| Failure::Rejected {
                reason: format!("{address:?} is not an address: {error}"),
                hint: "write host:port".to_owned(),
            })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        let channel = outlast_host::net::connect_lazy(&endpoint);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    pub(crate) fn relay(&self, address: &str) -> Result<RelayServiceClient<Channel>, Failure> {
        let client = RelayServiceClient::new(self.channel(address)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub(crate) fn control(&self, address: &str) -> Result<ControlServiceClient<Channel>, Failure> {
        Ok(ControlServiceClient::new(self.channel(address)?))
    }

    pub(crate) fn agent(&self, address: &str) -> Result<PeerServiceClient<Channel>, Failure> {
        let client = PeerServiceClient::new(self.channel(address)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// One call with its deadline; a missed deadline is an answer that may or may not have taken effect.
pub(crate) async fn call<T>(
    within: Duration,
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(within, request).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::from_status(&status)),
        Err(_) => Err(Failure::Unknown {
            reason: format!("no answer within {} ms", within.as_millis()),
            hint: "try again".to_owned(),
        }),
    }
}
