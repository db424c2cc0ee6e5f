//! One question to a keeper over its socket. Every call has a connection and a deadline of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::record::ExitFile;
use crate::wire::{Reply, Request};

/// A keeper answers in microseconds, unless it is killing (then within milliseconds) or stopped.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a keeper gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("nobody listens on the keeper's socket")]
    Gone {
        #[source]
        source: io::Error,
    },
    #[error("the keeper did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        #[source]
        source: io::Error,
    },
    #[error("the keeper refused: {0}")]
    Refused(String),
    #[error("the keeper's answer was not understood: {0}")]
    Protocol(String),
}

pub(super) fn call(dir: &Path, request: &Request) -> Result<Reply, CallError> {
    ask(dir, request, Some(CALL_TIMEOUT))
}

/// Waits without a deadline for the worker's end: the socket closes when the keeper dies, however it dies.
pub(super) fn watch(dir: &Path) -> Result<ExitFile, CallError> {
    match ask(dir, &Request::Watch, None)? {
        Reply::Exit(exit) => Ok(exit),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn unexpected(reply: &Reply) -> CallError {
    match reply {
        Reply::Refused(reason) => CallError::Refused(reason.clone()),
        other => CallError::Protocol(format!("an answer to another question: {other:?}")),
    }
}

fn ask(dir: &Path, request: &Request, timeout: Option<Duration>) -> Result<Reply, CallError> {
    let stream = connect(dir).map_err(|source| CallError::Gone { source })?;
    let mut line = serde_json::to_vec(request).expect("plain data becomes JSON");
    line.push(b'\n');
    let mut reply = Vec::new();
    let mut talk = || -> io::Result<()> {
        stream.set_write_timeout(Some(CALL_TIMEOUT))?;
        stream.set_read_timeout(timeout)?;
        (&stream).write_all(&line)?;
        BufReader::new(&stream).read_until(b'\n', &mut reply).map(drop)
    };
    talk().map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => CallError::Timeout { source },
        _ => CallError::Gone { source },
    })?;
    if reply.last() != Some(&b'\n') {
        return Err(CallError::Gone { source: io::ErrorKind::UnexpectedEof.into() });
    }
    serde_json::from_slice(&reply).map_err(|err| CallError::Protocol(err.to_string()))
}

/// Through the folder's descriptor, because a socket's path has room for 108 bytes and data folders may be deep.
fn connect(dir: &Path) -> io::Result<UnixStream> {
    let folder = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/keeper.sock", folder.as_raw_fd()))
}
