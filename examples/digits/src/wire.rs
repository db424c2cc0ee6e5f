//! Framed messages between ranks: length u32, kind u8, payload. Every length is checked before memory is taken for it,
//! and every read and write has an end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The gradient and its head are about 15 KiB.
pub const FRAME_MAX: usize = 64 << 10;
/// What a stranger may send before we know who it is.
pub const HANDSHAKE_MAX: usize = 4 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who I am; first message of a rank to rank 0.
    Hello = 1,
    /// All ranks are there.
    Welcome = 2,
    /// You do not belong here, and why.
    TurnedAway = 3,
    /// One rank's part of a step.
    Share = 4,
    /// The sum over all ranks.
    Total = 5,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        [Kind::Hello, Kind::Welcome, Kind::TurnedAway, Kind::Share, Kind::Total]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Failed to exchange a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection was closed")]
    Closed,
    #[error("nothing came for {waited_s} s")]
    TimedOut { waited_s: u64 },
    #[error("a message of {size} bytes, but at most {max} are taken here")]
    TooLong { size: usize, max: usize },
    #[error("a message that is none of ours: {reason}")]
    Strange { reason: String },
    #[error("the connection broke")]
    Io(#[source] std::io::Error),
}

pub(crate) fn strange(reason: impl Into<String>) -> WireError {
    WireError::Strange { reason: reason.into() }
}

/// Sends one frame.
pub fn send(stream: &mut TcpStream, kind: Kind, payload: &[u8], limit: Duration) -> Result<(), WireError> {
    if payload.len() > FRAME_MAX {
        return Err(WireError::TooLong { size: payload.len(), max: FRAME_MAX });
    }
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.push(kind as u8);
    frame.extend(payload);
    stream.set_write_timeout(Some(limit)).map_err(WireError::Io)?;
    stream.write_all(&frame).map_err(|err| failed(err, limit))
}

/// Receives one frame with a payload of at most `max` bytes, within `limit` altogether.
pub fn receive(stream: &mut TcpStream, max: usize, limit: Duration) -> Result<(Kind, Vec<u8>), WireError> {
    let began = Instant::now();
    let mut head = [0; 5];
    read_exact(stream, &mut head, began, limit)?;
    let [a, b, c, d, kind] = head;
    let size = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = Kind::read(kind).ok_or_else(|| strange(format!("kind {kind}")))?;
    if size > max {
        return Err(WireError::TooLong { size, max });
    }
    let mut payload = vec![0; size];
    read_exact(stream, &mut payload, began, limit)?;
    Ok((kind, payload))
}

/// Reads with one limit for all of it, so that a peer that sends byte by byte cannot hold us.
fn read_exact(
    stream: &mut TcpStream,
    mut buffer: &mut [u8],
    began: Instant,
    limit: Duration,
) -> Result<(), WireError> {
    while !buffer.is_empty() {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(WireError::TimedOut { waited_s: limit.as_secs() });
        }
        stream.set_read_timeout(Some(left)).map_err(WireError::Io)?;
        match stream.read(buffer) {
            Ok(0) => return Err(WireError::Closed),
            Ok(read) => buffer = &mut buffer[read..],
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(err) => return Err(failed(err, limit)),
        }
    }
    Ok(())
}

fn failed(err: std::io::Error, limit: Duration) -> WireError {
    match err.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => WireError::TimedOut { waited_s: limit.as_secs() },
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            WireError::Closed
        }
        _ => WireError::Io(err),
    }
}
