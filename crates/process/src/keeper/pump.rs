//! Moves the worker's output from its pipes to the log, on a thread of its own. Owns pipes and log.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::ioctl_fionbio;

use super::launch::Pipes;
use crate::clock::wall_now_ns;
use crate::log::{Line, LineSplitter, LogStream, LogWriter, Tail};

const READ_BYTES: usize = 64 << 10;
/// What one stream may still bring after the worker is dead: a pipe holds 64 KiB unless somebody enlarged it (1 MiB at most
/// without privileges).
const LAST_READS_MAX: usize = 1 << 20;

/// The handle of the keeper's main thread.
pub(super) struct Pump {
    tail: Arc<Mutex<Tail>>,
    done: Receiver<u64>,
    dropped: Option<u64>,
    stop: OwnedFd,
}

impl Pump {
    pub(super) fn start(pipes: Pipes, log: LogWriter) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        ioctl_fionbio(&pipes.stdout, true)?;
        ioctl_fionbio(&pipes.stderr, true)?;
        let tail = Arc::<Mutex<Tail>>::default();
        let (sender, done) = sync_channel(1);
        let streams = vec![
            Stream::new(LogStream::Stdout, Box::new(pipes.stdout)),
            Stream::new(LogStream::Stderr, Box::new(pipes.stderr)),
        ];
        let work = Work { streams, log, tail: Arc::clone(&tail), stop: stop.try_clone()?, lines: Vec::new() };
        std::thread::Builder::new()
            .name("pump".to_owned())
            .stack_size(256 << 10)
            .spawn(move || work.run(&sender))?;
        Ok(Self { tail, done, dropped: None, stop })
    }

    /// Whether both streams have ended and everything is in the log.
    pub(super) fn wait(&mut self, patience: Duration) -> bool {
        if self.dropped.is_none() {
            self.dropped = self.done.recv_timeout(patience).ok();
        }
        self.dropped.is_some()
    }

    /// Takes what is in the pipes now and no more: somebody who escaped may hold them open for ever.
    pub(super) fn finish(&mut self, patience: Duration) -> bool {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.wait(patience)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.unwrap_or(0)
    }

    pub(super) fn last_lines(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).lines()
    }
}

trait Pipe: Read + AsFd + Send {}
impl<T: Read + AsFd + Send> Pipe for T {}

struct Stream {
    name: LogStream,
    pipe: Option<Box<dyn Pipe>>,
    splitter: LineSplitter,
}

struct Work {
    streams: Vec<Stream>,
    log: LogWriter,
    tail: Arc<Mutex<Tail>>,
    stop: OwnedFd,
    lines: Vec<Line>,
}

impl Stream {
    fn new(name: LogStream, pipe: Box<dyn Pipe>) -> Self {
        Self { name, pipe: Some(pipe), splitter: LineSplitter::default() }
    }

    /// One read; the number of bytes, 0 when there is nothing now or ever again.
    fn read(&mut self, buffer: &mut [u8], lines: &mut Vec<Line>) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        match pipe.read(buffer) {
            Ok(count) if count > 0 => {
                self.splitter.push(&buffer[..count], wall_now_ns(), lines);
                count
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            _ => {
                self.end(lines);
                0
            }
        }
    }

    fn end(&mut self, lines: &mut Vec<Line>) {
        if self.pipe.take().is_some() {
            self.splitter.finish(wall_now_ns(), lines);
        }
    }
}

impl Work {
    fn run(mut self, done: &SyncSender<u64>) {
        let mut buffer = vec![0; READ_BYTES];
        let mut is_stopping = false;
        while !is_stopping && self.streams.iter().any(|stream| stream.pipe.is_some()) {
            is_stopping = self.wait();
            for index in 0..self.streams.len() {
                let stream = &mut self.streams[index];
                stream.read(&mut buffer, &mut self.lines);
                stream.splitter.tick(wall_now_ns(), &mut self.lines);
                self.write(index);
            }
        }
        for index in 0..self.streams.len() {
            let mut taken = 0;
            while taken < LAST_READS_MAX {
                match self.streams[index].read(&mut buffer, &mut self.lines) {
                    0 => break,
                    count => taken += count,
                }
            }
            self.streams[index].end(&mut self.lines);
            self.write(index);
        }
        let _ = done.send(self.log.dropped);
    }

    /// Until there is something to read (or a progress bar to show); whether the end was asked for.
    fn wait(&self) -> bool {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(&self.stop, PollFlags::IN)];
        let pipes = self.streams.iter().filter_map(|stream| stream.pipe.as_ref());
        fds.extend(pipes.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let bar = self.streams.iter().any(|stream| stream.splitter.has_pending());
        // An interrupted poll looks like one that found nothing.
        let _ = poll(&mut fds, bar.then_some(&second));
        fds[0].revents().contains(PollFlags::IN)
    }

    fn write(&mut self, index: usize) {
        if self.lines.is_empty() {
            return;
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        self.lines.iter().for_each(|line| tail.push(&line.bytes));
        drop(tail);
        self.log.append(self.streams[index].name, &self.lines);
        self.lines.clear();
    }
}
