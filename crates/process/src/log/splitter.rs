//! Turns a stream of bytes into lines: bounded in length, with progress bars (`\r`) thinned out. One per stream; no I/O.

use super::frame::LINE_BYTES_MAX;

/// At most one state of a progress bar in this time.
const PROGRESS_EVERY_NS: u64 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) ts_ns: u64,
    pub(crate) partial: bool,
    pub(crate) bytes: Vec<u8>,
}

/// Raw bytes are kept as they are; only the line ends (`\n`, `\r\n`) go.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    line: Vec<u8>,
    /// A `\r` was seen; whether it ends a line or begins to overwrite it is known with the next byte.
    after_cr: bool,
    /// The newest state of a progress bar that has not been written yet.
    pending: Option<Vec<u8>>,
    progress_at_ns: Option<u64>,
}

impl LineSplitter {
    pub(crate) fn push(&mut self, mut bytes: &[u8], now_ns: u64, out: &mut Vec<Line>) {
        while !bytes.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if bytes[0] != b'\n' {
                    self.overwritten(now_ns, out);
                }
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.extend(text, now_ns, out);
            match rest.first() {
                Some(b'\n') => self.ended(now_ns, out),
                Some(_) => self.after_cr = true,
                None => {}
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// Writes a waiting state of a progress bar when its time has come. To be called once a second.
    pub(crate) fn tick(&mut self, now_ns: u64, out: &mut Vec<Line>) {
        if self.may_show_progress(now_ns)
            && let Some(bytes) = self.pending.take()
        {
            self.progress_at_ns = Some(now_ns);
            out.push(Line { ts_ns: now_ns, partial: false, bytes });
        }
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The stream has ended: what is left is a line too.
    pub(crate) fn finish(&mut self, now_ns: u64, out: &mut Vec<Line>) {
        let bytes =
            if self.line.is_empty() { self.pending.take() } else { Some(std::mem::take(&mut self.line)) };
        out.extend(bytes.map(|bytes| Line { ts_ns: now_ns, partial: false, bytes }));
        *self = Self::default();
    }

    fn extend(&mut self, mut text: &[u8], now_ns: u64, out: &mut Vec<Line>) {
        while self.line.len() + text.len() > LINE_BYTES_MAX {
            let (fits, rest) = text.split_at(LINE_BYTES_MAX - self.line.len());
            self.line.extend_from_slice(fits);
            out.push(Line { ts_ns: now_ns, partial: true, bytes: std::mem::take(&mut self.line) });
            text = rest;
        }
        self.line.extend_from_slice(text);
    }

    fn ended(&mut self, now_ns: u64, out: &mut Vec<Line>) {
        // A bar that ends with "\r" before its newline shows its last state, once.
        let bytes = if self.line.is_empty() {
            self.pending.take().unwrap_or_default()
        } else {
            std::mem::take(&mut self.line)
        };
        self.pending = None;
        out.push(Line { ts_ns: now_ns, partial: false, bytes });
    }

    fn overwritten(&mut self, now_ns: u64, out: &mut Vec<Line>) {
        if !self.line.is_empty() {
            self.pending = Some(std::mem::take(&mut self.line));
        }
        self.tick(now_ns, out);
    }

    fn may_show_progress(&self, now_ns: u64) -> bool {
        self.progress_at_ns.is_none_or(|last| now_ns.saturating_sub(last) >= PROGRESS_EVERY_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(out: &[Line]) -> Vec<String> {
        out.iter().map(|line| String::from_utf8_lossy(&line.bytes).into_owned()).collect()
    }

    #[test]
    fn lines_come_out_the_same_however_the_bytes_arrive() {
        let input = b"one\ntwo\r\n\nfour\xff\nrest";
        for size in 1..input.len() {
            let (mut splitter, mut out) = (LineSplitter::default(), Vec::new());
            input.chunks(size).for_each(|chunk| splitter.push(chunk, 1, &mut out));
            splitter.finish(2, &mut out);
            assert_eq!(texts(&out), ["one", "two", "", "four\u{fffd}", "rest"], "chunks of {size}");
            assert_eq!(out[3].bytes, b"four\xff");
        }
    }

    #[test]
    fn long_lines_are_split_and_only_the_last_part_is_full() {
        let (mut splitter, mut out) = (LineSplitter::default(), Vec::new());
        splitter.push(&vec![b'x'; 2 * LINE_BYTES_MAX + 5], 1, &mut out);
        splitter.push(b"\n", 1, &mut out);
        assert_eq!(
            out.iter().map(|line| (line.partial, line.bytes.len())).collect::<Vec<_>>(),
            [(true, LINE_BYTES_MAX), (true, LINE_BYTES_MAX), (false, 5)]
        );
    }

    #[test]
    fn a_progress_bar_is_at_most_one_line_a_second_and_ends_with_its_last_state() {
        let (mut splitter, mut out) = (LineSplitter::default(), Vec::new());
        for percent in 0..=100u64 {
            splitter.push(format!("\r{percent}%").as_bytes(), percent * 30_000_000, &mut out);
        }
        splitter.push(b"\ndone\n", 3_100_000_000, &mut out);
        let texts = texts(&out);
        assert!(texts.len() <= 6, "{texts:?}");
        assert_eq!(texts[texts.len() - 2..], ["100%", "done"]);
    }

    #[test]
    fn a_bar_that_pauses_shows_its_newest_state_after_a_second() {
        let (mut splitter, mut out) = (LineSplitter::default(), Vec::new());
        splitter.push(b"1%\r2%\r3%\r4", 0, &mut out);
        assert!(splitter.has_pending());
        splitter.tick(2_000_000_000, &mut out);
        assert_eq!(texts(&out), ["1%", "3%"]);
    }
}
