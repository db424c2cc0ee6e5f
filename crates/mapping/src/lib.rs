//! A file on tmpfs as memory that is written to again and again. The kernel looks up every page of a `pwrite`; a mapping
//! that is kept pays for its pages once, and each write after that is a plain copy.
//!
//! ```text
//!  Mapping::new ──► ready (its pages are there) ──► windows ──► Window::fill, on any thread ──► windows ──► …
//! ```
//! Bytes are only ever written: no reference into the mapping exists, so another process may do with the file what it
//! likes. Only a file that is cut short under a mapping ends this process (SIGBUS): map files that nobody cuts short, and
//! look at their length before each use. A lack of memory is an error of [`Mapping::ready`], before anything is copied.

#![expect(unsafe_code, reason = "memory that other processes share can only be had through mmap")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{NonNull, copy_nonoverlapping, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::param::page_size;

/// The first bytes of a file, shared with everybody else who has it.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

/// Bytes of a mapping that nobody else in this process has.
#[derive(Debug)]
pub struct Window<'a> {
    start: NonNull<u8>,
    length: usize,
    _mapping: PhantomData<&'a mut Mapping>,
}

// SAFETY: a mapping belongs to the process, not to a thread. What needs no exclusive access (`ready`) is a system call
// that changes no byte.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: its bytes overlap with no other window's, and nothing else writes to the mapping while it lives.
unsafe impl Send for Window<'_> {}

impl Mapping {
    /// Maps the first `length` bytes; the file should have as many.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for a length of 0 or beyond the address space.
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| outside())?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so nothing that is in use is replaced.
        let start = unsafe { mmap(null_mut(), length, access, flags, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, length })
    }

    /// How many bytes are mapped.
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// Has the kernel find or make the range's pages now, so that no write to them can fail for want of memory. Several
    /// threads may share the work.
    ///
    /// # Errors
    /// No memory, a file that is shorter, or a kernel before 5.14, which cannot (`InvalidInput`).
    pub fn ready(&self, range: Range<u64>) -> io::Result<()> {
        let (from, to) = self.inside(&range)?;
        let from = from - from % page_size();
        // SAFETY: inside the mapping, which lives; this advice changes no byte.
        unsafe {
            let start = self.start.add(from).as_ptr().cast::<c_void>();
            madvise(start, to - from, Advice::LinuxPopulateWrite)?;
        }
        Ok(())
    }

    /// One window for each range. They must be in order and may not overlap.
    ///
    /// # Errors
    /// `InvalidInput` for ranges that are not so, or that leave the mapping.
    pub fn windows(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> io::Result<Vec<Window<'_>>> {
        let mut taken = 0;
        let mut windows = Vec::new();
        for range in ranges {
            let (from, to) = self.inside(&range)?;
            if from < taken {
                return Err(outside());
            }
            taken = to;
            // SAFETY: inside the mapping.
            let start = unsafe { self.start.add(from) };
            windows.push(Window { start, length: to - from, _mapping: PhantomData });
        }
        Ok(windows)
    }

    fn inside(&self, range: &Range<u64>) -> io::Result<(usize, usize)> {
        let within = range.start <= range.end && range.end <= self.length();
        within.then_some((range.start as usize, range.end as usize)).ok_or_else(outside)
    }
}

impl Window<'_> {
    /// # Panics
    /// Where it is not as long as `bytes`.
    pub fn fill(self, bytes: &[u8]) {
        assert_eq!(self.length, bytes.len(), "a window is made for the bytes that go into it");
        // SAFETY: the window's bytes are mapped and this thread's alone. `bytes` cannot lie in the mapping, since no
        // reference into it is ever made.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), bytes.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` and by nobody unmapped since; windows do not outlive it. Nothing could be done about
        // an error, and with a good range there is none.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn outside() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the range is not inside the mapping, or not after the one before",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// As large as any machine's.
    const PAGE: u64 = 1 << 16;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file in shared memory");
        file.set_len(length).expect("room");
        file
    }

    #[test]
    fn what_is_filled_is_in_the_file_and_nothing_beside_it() {
        let file = file(3 * PAGE);
        let mut mapping = Mapping::new(&file, 3 * PAGE).expect("mapped");
        mapping.ready(5_000..9_000).expect("memory");
        let windows = mapping.windows([10..13, 13..13, 8_000..8_200]).expect("inside");
        let bytes: [&[u8]; 3] = [b"abc", b"", &[7; 200]];
        std::thread::scope(|scope| {
            for (window, bytes) in windows.into_iter().zip(bytes) {
                scope.spawn(move || window.fill(bytes));
            }
        });
        let mut expected = vec![0; 3 * PAGE as usize];
        expected[10..13].copy_from_slice(b"abc");
        expected[8_000..8_200].fill(7);
        let mut found = vec![1; 3 * PAGE as usize];
        file.read_exact_at(&mut found, 0).expect("read");
        assert!(found == expected);
    }

    #[test]
    fn windows_that_overlap_or_leave_the_mapping_are_refused() {
        let file = file(4_096);
        let mut mapping = Mapping::new(&file, 4_096).expect("mapped");
        let bad: [&[(u64, u64)]; 4] =
            [&[(0, 10), (9, 12)], &[(10, 20), (0, 5)], &[(4_000, 4_097)], &[(20, 10)]];
        for ranges in bad {
            let refused = mapping.windows(ranges.iter().map(|&(from, to)| from..to)).expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{ranges:?}");
        }
        assert!(Mapping::new(&file, 0).is_err());
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error_before_anything_is_copied() {
        let file = file(2 * PAGE);
        let mapping = Mapping::new(&file, 2 * PAGE).expect("mapped");
        file.set_len(PAGE).expect("cut");
        assert!(mapping.ready(0..PAGE).is_ok());
        assert!(mapping.ready(0..2 * PAGE).is_err());
    }
}
