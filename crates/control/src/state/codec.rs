//! Versioned, self-describing bytes: one version byte, then MessagePack with named fields.
//!
//! An old reader that meets new bytes refuses them with the version it saw (the feature level keeps that from
//! happening in a running cluster); a new reader knows all older versions.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ClusterState, Envelope};

/// The version that this build writes; also its feature level.
pub const FORMAT_VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("no bytes at all")]
    Empty,
    #[error("format version {found}; this build reads up to {FORMAT_VERSION}: upgrade it first")]
    Version { found: u8 },
    #[error("bytes of format version {version} that do not decode")]
    Damaged {
        version: u8,
        #[source]
        source: rmp_serde::decode::Error,
    },
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT_VERSION as u8];
    rmp_serde::encode::write_named(&mut bytes, value)
        .expect("writing into memory cannot fail, and maps have text keys");
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if u32::from(version) != FORMAT_VERSION {
        return Err(DecodeError::Version { found: version });
    }
    rmp_serde::from_slice(body).map_err(|source| DecodeError::Damaged { version, source })
}

/// The commands of one log entry.
pub fn encode_batch(batch: &[Envelope]) -> Vec<u8> {
    encode(&batch)
}

/// # Errors
/// Bytes of a newer version, or damaged ones. Never panics.
pub fn decode_batch(bytes: &[u8]) -> Result<Vec<Envelope>, DecodeError> {
    decode(bytes)
}

pub fn encode_state(state: &ClusterState) -> Vec<u8> {
    encode(state)
}

/// # Errors
/// Bytes of a newer version, or damaged ones. Never panics.
pub fn decode_state(bytes: &[u8]) -> Result<ClusterState, DecodeError> {
    let mut state: ClusterState = decode(bytes)?;
    state.index = state.derive_index();
    Ok(state)
}

/// A response, for the way from the leader to a follower.
pub fn encode_response(response: &super::Response) -> Vec<u8> {
    encode(response)
}

/// # Errors
/// Bytes of a newer version, or damaged ones. Never panics.
pub fn decode_response(bytes: &[u8]) -> Result<super::Response, DecodeError> {
    decode(bytes)
}
