//! A worker's output on disk: `DIR/log/NNNNNN.seg`, written by the keeper alone, read by the agent at any time.
//!
//! ```text
//!  pipe ──► LineSplitter ──► LogWriter ──► 000001.seg 000002.seg … (oldest dropped) ──► LogReader
//! ```
//! A line's `seq` counts both streams together, from 1. Whatever is lost (dropped segments, a full disk, damage) shows as
//! a jump of `seq`, never as silence.

mod frame;
mod reader;
mod splitter;
mod tail;
mod writer;

use std::path::{Path, PathBuf};

pub use frame::LogStream;
pub use reader::{LogLine, LogReader};
pub(crate) use splitter::{Line, LineSplitter};
pub(crate) use tail::Tail;
pub(crate) use writer::LogWriter;

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.seg"))
}

/// The numbers of the segments in a folder, ascending.
fn segments(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let number = |name: &str| name.strip_suffix(".seg")?.parse().ok();
    let mut numbers: Vec<u64> =
        entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests;
