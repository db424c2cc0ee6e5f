//! The last words of a worker, for its termination record.

use std::collections::VecDeque;

const LINES_MAX: usize = 100;
const BYTES_MAX: usize = 16 << 10;
/// One endless line must not push out all the others.
const LINE_BYTES_MAX: usize = 4 << 10;

#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    size_bytes: usize,
}

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LINE_BYTES_MAX)]).into_owned();
        // Replacement characters are longer than what they replace.
        text.truncate(char_boundary(&text, LINE_BYTES_MAX));
        self.size_bytes += text.len();
        self.lines.push_back(text);
        while self.lines.len() > LINES_MAX || self.size_bytes > BYTES_MAX {
            let gone = self.lines.pop_front().expect("more than the limit means at least one");
            self.size_bytes -= gone.len();
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// The last place at or before `at` where `text` can be cut.
fn char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_newest_lines_within_its_bounds() {
        let mut tail = Tail::default();
        (0..250).for_each(|n| tail.push(format!("line {n}").as_bytes()));
        assert_eq!((tail.lines().len(), tail.lines()[99].as_str()), (LINES_MAX, "line 249"));
        (0..50).for_each(|_| tail.push(&[0xff; 40_000]));
        let size: usize = tail.lines().iter().map(String::len).sum();
        assert!(size <= BYTES_MAX && size > BYTES_MAX / 2, "{size}");
    }
}
