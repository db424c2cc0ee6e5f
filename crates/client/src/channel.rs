//! Connections: one way to open a channel, shared by everything that calls something else.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// A coordinator's port where the address names none.
const DEFAULT_PORT: u16 = 7400;
/// A machine on the same network that does not answer a SYN within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that vanished without a word (power, partition, SIGSTOP) is noticed after interval + timeout: 2 s, half of the
/// shortest lease.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an address: write host:port or http://host:port, for example 127.0.0.1:7400")]
pub struct AddressError {
    pub text: String,
}

/// The one spelling of an address: `http://host:port`, port 7400 where none is given.
///
/// # Errors
/// The text is no address, or asks for TLS, which this version does not speak.
pub fn parse_address(text: &str) -> Result<String, AddressError> {
    let error = || AddressError { text: text.to_owned() };
    let trimmed = text.trim().trim_end_matches('/');
    let authority = match trimmed.split_once("://") {
        None => trimmed,
        Some(("http", authority)) => authority,
        Some(_) => return Err(error()),
    };
    let parsed: tonic::codegen::http::uri::Authority = authority.parse().map_err(|_| error())?;
    if parsed.host().is_empty() || authority.contains('@') {
        return Err(error());
    }
    // `host:99999` parses as an authority without a port.
    match (parsed.port_u16(), authority.rsplit_once(':')) {
        (Some(port), _) => Ok(format!("http://{}:{port}", parsed.host())),
        (None, Some((_, rest))) if !rest.ends_with(']') => Err(error()),
        (None, _) => Ok(format!("http://{}:{DEFAULT_PORT}", parsed.host())),
    }
}

/// A channel that connects when it is first used, and again whenever it broke. Has to be called inside a tokio runtime.
///
/// # Errors
/// The address is none.
pub fn connect_lazy(address: &str) -> Result<Channel, AddressError> {
    Ok(outlast_host::net::connect_lazy(&endpoint(address)?))
}

/// The settings behind [`connect_lazy`], for callers that want to change one.
///
/// # Errors
/// The address is none.
pub fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    let url = parse_address(address)?;
    let endpoint = Endpoint::from_shared(url).map_err(|_| AddressError { text: address.to_owned() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_spelling() {
        for (text, url) in [
            ("127.0.0.1:7400", "http://127.0.0.1:7400"),
            ("http://127.0.0.1:7400/", "http://127.0.0.1:7400"),
            ("localhost", "http://localhost:7400"),
            (" [::1]:7410 ", "http://[::1]:7410"),
            ("[::1]", "http://[::1]:7400"),
        ] {
            assert_eq!(parse_address(text).as_deref(), Ok(url), "{text:?}");
        }
        for bad in
            ["", "http://", "https://a:1", "a b:1", "host:99999", "host:port", "user@host:1", "http://a/b"]
        {
            assert!(parse_address(bad).is_err(), "{bad:?} must be refused");
        }
    }
}
