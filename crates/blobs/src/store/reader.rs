//! Reading one shard: no byte of an extent is handed out before the whole extent was verified.
//!
//! While one extent is hashed (in the store's pool), the next one is read; and the disk is told of the one after that.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use outlast_types::Digest;
use rustix::fs::{Advice, fadvise};

use super::pieces::ShardPieces;
use super::with_suffix;
use crate::extent::{EXTENT_BYTES, ExtentHasher, extent_count, hash_of};
use crate::files;
use crate::hash_pool::{HashPool, Pending};
use crate::outboard::Outboard;

/// What a caller does next differs: other holder and repair; other holder; try again.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the bytes of extent {extent} are not the ones that were sealed")]
    Corrupt { extent: u64 },
    #[error("there is no such shard here")]
    Missing,
    #[error("the shard could not be read now")]
    Transient {
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    pub(super) fn from_io(source: io::Error, extent: u64) -> Self {
        const EIO: i32 = 5;
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            // A medium that gives up on a sector will not do better next time.
            _ if source.raw_os_error() == Some(EIO) => Self::Corrupt { extent },
            io::ErrorKind::UnexpectedEof => Self::Corrupt { extent },
            _ => Self::Transient { source },
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Corrupt { .. } => io::ErrorKind::InvalidData,
            ReadError::Missing => io::ErrorKind::NotFound,
            ReadError::Transient { source } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// A shard as `io::Read`, or extent by extent. As `io::Read`, a `ReadError` is the inner error of the `io::Error`. It has
/// two extents in memory: the one that is handed out, and the one that is read ahead.
pub struct ShardReader {
    pub(super) file: File,
    outboard: Outboard,
    pub(super) pool: Arc<HashPool>,
    next: u64,
    reads_ahead: bool,
    /// The extent `next`, if it was read ahead.
    ahead: Option<Result<Pending, ReadError>>,
    /// The newest verified extent, and how much of it `read` has given out.
    extent: Vec<u8>,
    given: usize,
}

impl ShardReader {
    pub(super) fn open(
        data: &Path,
        tmp: &Path,
        root: Digest,
        pool: Arc<HashPool>,
    ) -> Result<Self, ReadError> {
        let file = File::open(data).map_err(|err| ReadError::from_io(err, 0))?;
        let outboard = load_outboard(data, tmp, root)?;
        let len = file.metadata().map_err(|err| ReadError::from_io(err, 0))?.len();
        if len != outboard.size_bytes {
            return Err(ReadError::Corrupt { extent: len.min(outboard.size_bytes) / outboard.extent_bytes });
        }
        // Best effort, as below: a file system that takes no advice reads as it likes.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let (reads_ahead, ahead) = (true, None);
        Ok(Self { file, outboard, pool, next: 0, reads_ahead, ahead, extent: Vec::new(), given: 0 })
    }

    pub fn size_bytes(&self) -> u64 {
        self.outboard.size_bytes
    }

    pub fn extent_bytes(&self) -> u64 {
        self.outboard.extent_bytes
    }

    /// The outboard file's bytes.
    pub(crate) fn outboard_bytes(&self) -> Vec<u8> {
        self.outboard.encode()
    }

    /// The whole shard, for somebody who verifies it himself: with less memory, and damage is told later.
    pub fn into_pieces(self) -> ShardPieces {
        ShardPieces::new(self)
    }

    /// With one extent in memory instead of two. The disk is told of the next one all the same.
    pub fn with_little_memory(self) -> Self {
        Self { reads_ahead: false, ..self }
    }

    /// Goes to the beginning of an extent.
    pub fn seek_extent(&mut self, index: u64) {
        if index != self.next {
            self.next = index;
            self.ahead = None;
        }
        self.extent.clear();
        self.given = 0;
    }

    /// The next extent, verified; `None` after the last. Do not mix with `read`.
    ///
    /// # Errors
    /// The extent that is wrong; nothing of it was handed out.
    pub fn next_extent(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let index = self.next;
        let Some(wanted) = self.wanted(index) else { return Ok(None) };
        let mut spare = std::mem::take(&mut self.extent);
        self.given = 0;
        let current = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.begin(index, std::mem::take(&mut spare)),
        }?;
        // A bad one is told when it is its turn.
        let ahead = self.wanted(index + 1).filter(|_| self.reads_ahead);
        self.ahead = ahead.map(|_| self.begin(index + 1, spare));
        let hashed = current.wait().map_err(|err| ReadError::Transient { source: io::Error::other(err) })?;
        let count = extent_count(self.outboard.size_bytes, self.outboard.extent_bytes);
        if hash_of(hashed.subtree, count) != wanted {
            // Asked again, it is read again.
            self.ahead = None;
            return Err(ReadError::Corrupt { extent: index });
        }
        self.next += 1;
        self.extent = hashed.bytes;
        Ok(Some(&self.extent))
    }

    pub(super) fn wanted(&self, index: u64) -> Option<[u8; 32]> {
        usize::try_from(index).ok().and_then(|index| self.outboard.extents.get(index)).copied()
    }

    fn range(&self, index: u64) -> (u64, u64) {
        let at = index.saturating_mul(self.outboard.extent_bytes);
        (at, self.outboard.size_bytes.saturating_sub(at).min(self.outboard.extent_bytes))
    }

    /// Reads an extent and has it hashed.
    fn begin(&self, index: u64, mut buffer: Vec<u8>) -> Result<Pending, ReadError> {
        let (at, len) = self.range(index);
        let len =
            usize::try_from(len).map_err(|err| ReadError::Transient { source: io::Error::other(err) })?;
        self.announce(index + 1);
        buffer.resize(len, 0);
        self.file.read_exact_at(&mut buffer, at).map_err(|err| ReadError::from_io(err, index))?;
        Ok(self.pool.hash(buffer, at))
    }

    /// The disk may read it already, while what was read is used.
    fn announce(&self, index: u64) {
        let (at, len) = self.range(index);
        if let Some(len) = NonZeroU64::new(len) {
            let _ = fadvise(&self.file, at, Some(len), Advice::WillNeed);
        }
    }
}

impl Read for ShardReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.extent.len() && !buffer.is_empty() && self.next_extent()?.is_none() {
            return Ok(0);
        }
        let count = buffer.len().min(self.extent.len() - self.given);
        buffer[..count].copy_from_slice(&self.extent[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

/// The extent hashes of a shard. Damaged or lost ones are made again from the bytes, if those still have the root.
pub(super) fn load_outboard(data: &Path, tmp: &Path, root: Digest) -> Result<Outboard, ReadError> {
    let path = with_suffix(data, "ext");
    match fs::read(&path) {
        Ok(bytes) => {
            if let Some(outboard) = Outboard::decode(&bytes).filter(|outboard| outboard.root == root) {
                return Ok(outboard);
            }
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => match ReadError::from_io(err, 0) {
            ReadError::Corrupt { .. } => {}
            other => return Err(other),
        },
    }
    let outboard = rebuild(data)?;
    if outboard.root != root {
        return Err(ReadError::Corrupt { extent: 0 });
    }
    tracing::warn!(path = %path.display(), "extent hashes were damaged and have been made again from the bytes");
    // Only a convenience for the next reader.
    if let Err(err) = files::write_durable(tmp, &path, &outboard.encode()) {
        tracing::warn!(%err, path = %path.display(), "could not write the extent hashes");
    }
    Ok(outboard)
}

fn rebuild(data: &Path) -> Result<Outboard, ReadError> {
    let mut file = File::open(data).map_err(|err| ReadError::from_io(err, 0))?;
    let mut hasher = ExtentHasher::new(EXTENT_BYTES);
    let mut buffer = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(ReadError::from_io(err, size_bytes / EXTENT_BYTES)),
        }
    }
    let (root, extents) = hasher.finish();
    Ok(Outboard { extent_bytes: EXTENT_BYTES, size_bytes, root, extents })
}
