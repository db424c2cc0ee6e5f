//! Reading one shard: no byte of an extent is handed out before the whole extent was verified.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use outlast_types::Digest;

use super::with_suffix;
use crate::extent::{EXTENT_BYTES, ExtentHasher, extent_count, extent_hash};
use crate::files;
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

/// A shard as `io::Read`, or extent by extent. As `io::Read`, a `ReadError` is the inner error of the `io::Error`.
pub struct ShardReader {
    file: File,
    outboard: Outboard,
    next: u64,
    /// The newest verified extent, and how much of it `read` has given out.
    extent: Vec<u8>,
    given: usize,
}

impl ShardReader {
    pub(super) fn open(data: &Path, tmp: &Path, root: Digest) -> Result<Self, ReadError> {
        let file = File::open(data).map_err(|err| ReadError::from_io(err, 0))?;
        let outboard = load_outboard(data, tmp, root)?;
        let len = file.metadata().map_err(|err| ReadError::from_io(err, 0))?.len();
        if len != outboard.size_bytes {
            return Err(ReadError::Corrupt { extent: len.min(outboard.size_bytes) / outboard.extent_bytes });
        }
        Ok(Self { file, outboard, next: 0, extent: Vec::new(), given: 0 })
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

    /// Goes to the beginning of an extent.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn seek_extent(&mut self, index: u64) -> Result<(), ReadError> {
        let at = index.saturating_mul(self.outboard.extent_bytes);
        self.file.seek(SeekFrom::Start(at)).map_err(|err| ReadError::from_io(err, index))?;
        self.next = index;
        self.extent.clear();
        self.given = 0;
        Ok(())
    }

    /// The next extent, verified; `None` after the last. Do not mix with `read`.
    ///
    /// # Errors
    /// The extent that is wrong; nothing of it was handed out.
    pub fn next_extent(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let Outboard { extent_bytes, size_bytes, extents, .. } = &self.outboard;
        let Some(wanted) = usize::try_from(self.next).ok().and_then(|index| extents.get(index)) else {
            return Ok(None);
        };
        let index = self.next;
        let len = (*size_bytes - index * extent_bytes).min(*extent_bytes);
        let len =
            usize::try_from(len).map_err(|err| ReadError::Transient { source: io::Error::other(err) })?;
        self.given = 0;
        self.extent.resize(len, 0);
        let read = self.file.read_exact(&mut self.extent).map_err(|err| ReadError::from_io(err, index));
        let count = extent_count(*size_bytes, *extent_bytes);
        if read.is_ok() && extent_hash(index, count, *extent_bytes, &self.extent) == *wanted {
            self.next += 1;
            return Ok(Some(&self.extent));
        }
        self.extent.clear();
        read.and(Err(ReadError::Corrupt { extent: index }))
    }
}

impl Read for ShardReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.extent.len() && !buffer.is_empty() {
            let next = self.next_extent().map_err(|err| {
                let kind = match &err {
                    ReadError::Corrupt { .. } => io::ErrorKind::InvalidData,
                    ReadError::Missing => io::ErrorKind::NotFound,
                    ReadError::Transient { source } => source.kind(),
                };
                io::Error::new(kind, err)
            })?;
            if next.is_none() {
                return Ok(0);
            }
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
