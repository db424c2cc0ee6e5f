//! A slot that the worker keeps mapped between its saves: about as fast as a copy within its own memory, where `pwrite`
//! takes two to three times as long.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use outlast_mapping::Mapping;

use crate::parts::{COPY_BYTES, Parts, in_parallel};

/// The mapping of one slot's file in shared memory. The agent makes that file and never cuts it short.
#[derive(Debug)]
pub struct MappedSlot {
    mapping: Mapping,
    file: FileId,
}

/// As long as a file is mapped, no other one gets its number.
#[derive(Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl MappedSlot {
    /// Maps the whole file and has its pages made ready, which takes about as long as a copy of so much.
    ///
    /// # Errors
    /// Why it cannot be had so; it can be written as a file then.
    pub fn new(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let end = found.len();
        let mapping = Mapping::new(file, end)?;
        let chunks = (0..end).step_by(COPY_BYTES).map(|from| from..end.min(from + COPY_BYTES as u64));
        in_parallel(end, chunks.collect(), |chunk| mapping.ready(chunk))?;
        Ok(Self { mapping, file: FileId::of(&found) })
    }

    /// Whether it has the first `end` bytes of this very file.
    pub fn has(&self, file: &File, end: u64) -> io::Result<bool> {
        let found = file.metadata()?;
        Ok(end <= self.mapping.length() && end <= found.len() && self.file == FileId::of(&found))
    }

    /// Copies the parts to `at`, packed.
    ///
    /// # Errors
    /// Parts that go beyond what is mapped.
    pub fn write_at(&mut self, parts: &Parts<'_>, at: u64) -> io::Result<()> {
        let pieces = parts.pieces(at)?;
        let windows = self.mapping.windows(pieces.iter().map(|(at, bytes)| *at..*at + bytes.len() as u64))?;
        let copies = windows.into_iter().zip(&pieces).collect();
        in_parallel(parts.packed_bytes(), copies, |(window, (_, bytes))| {
            window.fill(bytes);
            Ok(())
        })
    }
}

impl FileId {
    fn of(found: &std::fs::Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mapped_of_the_same_file_counts() {
        let file = || tempfile::tempfile_in("/dev/shm").expect("a file in shared memory");
        let (one, two) = (file(), file());
        for file in [&one, &two] {
            file.set_len(20_000).expect("room");
        }
        let slot = MappedSlot::new(&one).expect("mapped");
        assert!(slot.has(&one, 20_000).expect("looked at"));
        assert!(!slot.has(&two, 10).expect("looked at"), "another file");
        one.set_len(30_000).expect("grown");
        assert!(slot.has(&one, 20_000).expect("looked at"));
        assert!(!slot.has(&one, 20_001).expect("looked at"), "grown since");
        one.set_len(4_096).expect("cut");
        assert!(!slot.has(&one, 20_000).expect("looked at"), "a copy there would end the process");
    }
}
