//! Reads a worker's output while it grows. Never waits, never panics on damaged bytes, never hides a gap.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{self, Frame, LogStream, Parsed, SEGMENT_HEADER_BYTES};
use super::{segment_path, segments};

/// More than the largest frame.
const READ_BYTES: usize = 128 << 10;

/// One line (or a part of a long one) as the worker wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Counts both streams of the worker together, from 1.
    pub seq: u64,
    /// Wall clock of the node, nanoseconds since 1970.
    pub ts_ns: u64,
    pub stream: LogStream,
    /// More of the same line follows in the next record of this stream.
    pub partial: bool,
    /// Without the line end; not always UTF-8.
    pub bytes: Vec<u8>,
    /// How many lines are missing right before this one: dropped segments, a full disk, damage.
    pub missed: u64,
}

/// A place in a worker's output.
///
/// `next` returns `None` at the end of what is there; called again later it goes on from there (follow).
pub struct LogReader {
    dir: PathBuf,
    next_seq: u64,
    open: Option<Segment>,
    /// The newest segment that is done with.
    finished: u64,
}

struct Segment {
    number: u64,
    file: File,
    /// Bytes of the file from `offset` on, and how many of them are done with.
    buffer: Vec<u8>,
    offset: u64,
    at: usize,
    has_header: bool,
    /// Nothing more can be understood here; only a newer segment helps.
    damaged: bool,
}

impl LogReader {
    /// Reads the log of `dir` (the keeper's folder) from line `from_seq` on; 0 and 1 mean from the start. The folder may
    /// be empty still.
    pub fn open(dir: &Path, from_seq: u64) -> Self {
        let dir = dir.join("log");
        let mut finished = 0;
        for number in segments(&dir) {
            match first_seq(&segment_path(&dir, number)) {
                Some(first) if first <= from_seq => finished = number - 1,
                _ => break,
            }
        }
        Self { dir, next_seq: from_seq.max(1), open: None, finished }
    }

    /// The number that the next line has if nothing is missing: to go on from there later.
    pub fn position(&self) -> u64 {
        self.next_seq
    }

    fn step(&mut self) -> Option<LogLine> {
        loop {
            if self.open.is_none() {
                self.open = Some(self.next_segment()?);
            }
            let segment = self.open.as_mut().expect("just set");
            match segment.next_frame() {
                Some(frame) if frame.seq < self.next_seq => {}
                Some(frame) => {
                    let missed = frame.seq - self.next_seq;
                    self.next_seq = frame.seq.saturating_add(1);
                    let Frame { seq, ts_ns, stream, partial, bytes } = frame;
                    return Some(LogLine { seq, ts_ns, stream, partial, bytes: bytes.to_vec(), missed });
                }
                None => {
                    // The end of this one is final only when a newer one exists, and that may have appeared (with more
                    // lines here) since the last read.
                    let number = segment.number;
                    if !segments(&self.dir).iter().any(|other| *other > number) {
                        return None;
                    }
                    if !segment.damaged && segment.read_more() {
                        continue;
                    }
                    (self.open, self.finished) = (None, number);
                }
            }
        }
    }

    fn next_segment(&self) -> Option<Segment> {
        let number = segments(&self.dir).into_iter().find(|number| *number > self.finished)?;
        let file = File::open(segment_path(&self.dir, number)).ok()?;
        Some(Segment {
            number,
            file,
            buffer: Vec::new(),
            offset: 0,
            at: 0,
            has_header: false,
            damaged: false,
        })
    }
}

impl Iterator for LogReader {
    type Item = LogLine;

    fn next(&mut self) -> Option<LogLine> {
        self.step()
    }
}

impl Segment {
    fn next_frame(&mut self) -> Option<Frame<'_>> {
        loop {
            if self.damaged || (!self.has_header && !self.take_header()) {
                return None;
            }
            let is_short = match frame::parse(&self.buffer[self.at..]) {
                Parsed::Frame(..) => break,
                Parsed::Damaged => false,
                Parsed::Short => true,
            };
            self.damaged |= !is_short;
            if is_short && !self.read_more() {
                return None;
            }
        }
        // Parsed a second time because the loop above may have to grow the buffer that the frame borrows.
        let Parsed::Frame(frame, size) = frame::parse(&self.buffer[self.at..]) else { return None };
        self.at += size;
        Some(frame)
    }

    fn take_header(&mut self) -> bool {
        while self.buffer.len() < SEGMENT_HEADER_BYTES {
            if !self.read_more() {
                return false;
            }
        }
        self.has_header = frame::parse_segment_header(&self.buffer).is_some();
        self.damaged = !self.has_header;
        self.at = SEGMENT_HEADER_BYTES;
        self.has_header
    }

    /// Reads on from the first byte not understood yet; whether that brought anything new. The bytes of an unfinished
    /// frame are read again, because the writer cuts off what it could not write whole. An I/O error reads as damage.
    fn read_more(&mut self) -> bool {
        self.offset += self.at as u64;
        let old = self.buffer.split_off(self.at);
        self.at = 0;
        self.buffer.resize(READ_BYTES, 0);
        match self.file.read_at(&mut self.buffer, self.offset) {
            Ok(count) => self.buffer.truncate(count),
            Err(err) => {
                tracing::warn!(%err, segment = self.number, "could not read a worker's log");
                self.buffer.clear();
                self.damaged = true;
                return false;
            }
        }
        self.buffer.len() > old.len() || !old.starts_with(&self.buffer)
    }
}

fn first_seq(path: &Path) -> Option<u64> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut header).ok()?;
    frame::parse_segment_header(&header)
}
