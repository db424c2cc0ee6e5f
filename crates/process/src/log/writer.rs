//! Appends lines to segments. One writer per folder, in the keeper, from the worker's start to its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::frame::{self, Frame, LogStream, SEGMENT_HEADER_BYTES};
use super::splitter::Line;
use super::{segment_path, segments};
use crate::files;

pub(crate) struct LogWriter {
    dir: PathBuf,
    segment_bytes: u64,
    segments_max: usize,
    open: Option<Segment>,
    next_number: u64,
    next_seq: u64,
    buffer: Vec<u8>,
    /// Lines that could not be written. Their numbers are used up, so a reader sees the gap.
    pub(crate) dropped: u64,
}

struct Segment {
    file: File,
    size_bytes: u64,
}

impl LogWriter {
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn create(dir: &Path, segment_bytes: u64, segments_max: u32) -> io::Result<Self> {
        files::create_private_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            segment_bytes: segment_bytes.max(64 << 10),
            segments_max: segments_max.max(2) as usize,
            open: None,
            next_number: segments(dir).last().map_or(1, |last| last + 1),
            next_seq: 1,
            buffer: Vec::new(),
            dropped: 0,
        })
    }

    /// Never fails: a full or broken disk costs lines (counted, and visible as a gap), not the worker.
    pub(crate) fn append(&mut self, stream: LogStream, lines: &[Line]) {
        for batch in lines.chunks(256) {
            if let Err(err) = self.write_batch(stream, batch) {
                self.dropped += batch.len() as u64;
                tracing::debug!(%err, dropped = self.dropped, "could not write a worker's output");
                self.cut_torn_tail();
            }
        }
    }

    /// What was written of a failed batch goes again, so that the same segment can be used on (a full disk must not eat
    /// up the older segments by making new ones).
    fn cut_torn_tail(&mut self) {
        if let Some(segment) = &self.open
            && segment.file.set_len(segment.size_bytes).is_err()
        {
            self.open = None;
        }
    }

    fn write_batch(&mut self, stream: LogStream, lines: &[Line]) -> io::Result<()> {
        self.buffer.clear();
        let first_seq = self.next_seq;
        for line in lines {
            let (seq, ts_ns, partial) = (self.next_seq, line.ts_ns, line.partial);
            frame::encode(&Frame { seq, ts_ns, stream, partial, bytes: &line.bytes }, &mut self.buffer);
            self.next_seq += 1;
        }
        if self.open.as_ref().is_none_or(|segment| segment.size_bytes >= self.segment_bytes) {
            self.open = Some(self.start_segment(first_seq)?);
        }
        let segment = self.open.as_mut().expect("just opened");
        segment.file.write_all(&self.buffer)?;
        segment.size_bytes += self.buffer.len() as u64;
        Ok(())
    }

    fn start_segment(&mut self, first_seq: u64) -> io::Result<Segment> {
        let path = segment_path(&self.dir, self.next_number);
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(err) = file.write_all(&frame::segment_header(first_seq)) {
            std::fs::remove_file(&path)?;
            return Err(err);
        }
        self.next_number += 1;
        for old in segments(&self.dir).iter().rev().skip(self.segments_max) {
            std::fs::remove_file(segment_path(&self.dir, *old))?;
        }
        Ok(Segment { file, size_bytes: SEGMENT_HEADER_BYTES as u64 })
    }
}
