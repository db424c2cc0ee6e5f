//! A checkpoint's named parts, packed exactly as the agent packs a folder with files of the same names and bytes: restore
//! cannot tell the two apart. Nothing is gathered in between; each part is copied once, into the slot.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::thread;

use tar::{EntryType, Header};

/// What a tar header has room for without an extension.
pub const PART_NAME_BYTES_MAX: usize = 99;
const BLOCK_BYTES: u64 = 512;
/// Two empty blocks end an archive.
const END_BYTES: u64 = 2 * BLOCK_BYTES;
const MODE: u32 = 0o644;
/// What a thread copies at a time, and how many copy: memory is no faster with more.
pub(crate) const COPY_BYTES: usize = 8 << 20;
const COPIERS_MAX: usize = 4;

/// Why parts cannot be a checkpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    #[error(
        "{name:?} cannot name a part: parts become files, so give a plain file name of 1 to {PART_NAME_BYTES_MAX} bytes"
    )]
    Name { name: String },
    #[error("two parts are named {name:?}")]
    Twice { name: String },
    #[error("a checkpoint without parts holds nothing")]
    None,
}

/// Checked parts, in the order in which they are packed.
#[derive(Debug)]
pub struct Parts<'a> {
    parts: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// The first name that no file could have, or that comes twice.
    pub fn new(parts: &[(&'a str, &'a [u8])]) -> Result<Self, PartsError> {
        let mut parts = parts.to_vec();
        parts.sort_unstable_by_key(|(name, _)| *name);
        if parts.is_empty() {
            return Err(PartsError::None);
        }
        let is_name = |name: &str| {
            (1..=PART_NAME_BYTES_MAX).contains(&name.len())
                && !name.contains(['/', '\0'])
                && ![".", ".."].contains(&name)
        };
        if let Some((name, _)) = parts.iter().find(|(name, _)| !is_name(name)) {
            return Err(PartsError::Name { name: (*name).to_owned() });
        }
        if let Some(twice) = parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(PartsError::Twice { name: twice[0].0.to_owned() });
        }
        Ok(Self { parts })
    }

    /// How many bytes they take, packed.
    pub fn packed_bytes(&self) -> u64 {
        let packed = |bytes: &[u8]| BLOCK_BYTES + (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        self.parts.iter().map(|(_, bytes)| packed(bytes)).sum::<u64>() + END_BYTES
    }

    /// Copies them to `at`, packed. The worker waits for it, so its other cores help where there are many bytes.
    ///
    /// # Errors
    /// What the file says.
    pub fn write_at(&self, out: &File, at: u64) -> io::Result<()> {
        in_parallel(self.packed_bytes(), self.pieces(at)?, |(at, bytes)| out.write_all_at(&bytes, at))
    }

    /// The archive from `at` on, in order and without a gap, in pieces that one thread copies.
    pub(crate) fn pieces(&self, mut at: u64) -> io::Result<Vec<(u64, Cow<'a, [u8]>)>> {
        const ZEROS: [u8; END_BYTES as usize] = [0; END_BYTES as usize];
        let mut pieces = Vec::new();
        let mut add = |bytes: Cow<'a, [u8]>| {
            let count = bytes.len() as u64;
            pieces.push((at, bytes));
            at += count;
        };
        for (name, bytes) in &self.parts {
            add(Cow::Owned(header(name, bytes.len() as u64)?.as_bytes().to_vec()));
            bytes.chunks(COPY_BYTES).for_each(|chunk| add(Cow::Borrowed(chunk)));
            // An older checkpoint's bytes may lie there.
            let padding = bytes.len().next_multiple_of(BLOCK_BYTES as usize) - bytes.len();
            add(Cow::Borrowed(&ZEROS[..padding]));
        }
        add(Cow::Borrowed(&ZEROS));
        Ok(pieces)
    }
}

/// Does all of `work`, on some threads where it is about many bytes.
pub(crate) fn in_parallel<T: Send>(
    bytes: u64,
    pieces: Vec<T>,
    work: impl Fn(T) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let worth = usize::try_from(bytes.div_ceil(COPY_BYTES as u64)).unwrap_or(usize::MAX);
    let threads = cores.min(COPIERS_MAX).min(worth);
    let pieces = Mutex::new(pieces.into_iter());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let share = || std::iter::from_fn(next).try_for_each(&work);
    thread::scope(|scope| {
        // One that cannot be started leaves its share to the others.
        let start = |_| thread::Builder::new().name("stage".to_owned()).spawn_scoped(scope, share).ok();
        let helpers: Vec<_> = (1..threads).filter_map(start).collect();
        let own = share();
        let joined = helpers.into_iter().map(|helper| helper.join().expect("it only copies"));
        joined.fold(own, Result::and)
    })
}

fn header(name: &str, size_bytes: u64) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size_bytes);
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_need_names_that_files_could_have() {
        let long = "x".repeat(PART_NAME_BYTES_MAX + 1);
        for name in ["", ".", "..", "a/b", "/a", "a\0", &long] {
            let refused = Parts::new(&[("good", b""), (name, b"")]).expect_err("refused");
            assert_eq!(refused, PartsError::Name { name: name.to_owned() });
        }
        assert_eq!(
            Parts::new(&[("a", b"1"), ("b", b""), ("a", b"2")]).expect_err("refused"),
            PartsError::Twice { name: "a".into() }
        );
        assert_eq!(Parts::new(&[]).expect_err("refused"), PartsError::None);
        assert!(Parts::new(&[(&long[1..], b"")]).is_ok());
    }
}
