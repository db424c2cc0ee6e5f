//! The keeper's socket: accepts only its own user, reads requests, never blocks. Owns the connections.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::wire::{REQUEST_BYTES_MAX, Reply, Request};

/// An agent has one watch and one call open; the rest is room for a second agent that adopts, and for accidents.
const CLIENTS_MAX: usize = 16;

pub(super) struct Clients {
    listener: UnixListener,
    open: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    watching: bool,
    gone: bool,
}

impl Clients {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, open: Vec::new() })
    }

    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let fds = self.open.iter().map(|client| client.stream.as_fd());
        std::iter::once(self.listener.as_fd())
            .chain(fds)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
    }

    /// Answers whatever has arrived. `answer` returns `None` for a watch, which `announce` answers later.
    pub(super) fn serve(&mut self, mut answer: impl FnMut(&Request) -> Option<Reply>) {
        self.accept();
        for client in &mut self.open {
            while let Some(line) = client.next_line() {
                let reply = match serde_json::from_slice(&line) {
                    Ok(request) => answer(&request),
                    Err(err) => Some(Reply::Refused(format!("not a request: {err}"))),
                };
                match reply {
                    Some(reply) => client.send(&reply),
                    None => client.watching = true,
                }
            }
        }
        self.open.retain(|client| !client.gone);
    }

    /// Tells all who watch.
    pub(super) fn announce(&mut self, reply: &Reply) {
        for client in self.open.iter_mut().filter(|client| client.watching) {
            client.send(reply);
            client.watching = false;
        }
        self.open.retain(|client| !client.gone);
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // The file mode says the same; this holds even where a folder was made too open.
            let is_ours = socket_peercred(&stream).is_ok_and(|peer| peer.uid == geteuid());
            if is_ours && self.open.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.open.push(Client { stream, input: Vec::new(), watching: false, gone: false });
            }
        }
    }
}

impl Client {
    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                return Some(self.input.drain(..=end).collect());
            }
            let mut buffer = [0; REQUEST_BYTES_MAX];
            match self.stream.read(&mut buffer) {
                Ok(count) if count > 0 && self.input.len() <= REQUEST_BYTES_MAX => {
                    self.input.extend_from_slice(&buffer[..count]);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return None,
                _ => {
                    self.gone = true;
                    return None;
                }
            }
        }
    }

    /// A reply is far smaller than a socket's buffer; who does not read it is let go.
    fn send(&mut self, reply: &Reply) {
        let mut line = serde_json::to_vec(reply).expect("plain data becomes JSON");
        line.push(b'\n');
        self.gone |= self.stream.write_all(&line).is_err();
    }
}
