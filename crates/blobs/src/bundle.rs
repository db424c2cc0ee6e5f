//! Bundles: the files that jobs bring along, each one archive named by its BLAKE3.
//!
//! `ROOT/<64 hex digits>` is a whole bundle, `ROOT/tmp/…` one that is arriving. A bundle is small (256 MiB), so it is
//! verified as a whole before its first byte is handed out. Its file's time is that of its newest use.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outlast_types::Digest;

use crate::files::{self, TmpFile};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("the bundle's content is {found}, not {expected}: it was damaged on its way")]
    Mismatch { expected: Digest, found: Digest },
    #[error("there is no bundle {0} here")]
    Missing(Digest),
    #[error("bundle {0} is damaged on this disk")]
    Corrupt(Digest),
    #[error("the disk is full")]
    Full {
        #[source]
        source: io::Error,
    },
    #[error("the bundle could not be received")]
    Source {
        #[source]
        source: io::Error,
    },
    #[error("the bundle store {} could not be used", root.display())]
    Io {
        root: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The bundles of one folder. Only one process may use it at a time (the data folder's lock sees to that).
#[derive(Clone, Debug)]
pub struct BundleStore {
    root: PathBuf,
}

/// What `prune` leaves alone.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub count: usize,
    pub bytes: u64,
    pub age: Duration,
}

/// A verified bundle from its start.
#[derive(Debug)]
pub struct BundleReader {
    file: File,
    size_bytes: u64,
}

impl BundleStore {
    /// Makes the folder, private to its user, and removes what was half received.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(root: &Path) -> Result<Self, BundleError> {
        let store = Self { root: root.to_owned() };
        let tmp = root.join("tmp");
        files::create_dir_durable(&tmp)
            .and_then(|()| files::empty_dir(&tmp))
            .map_err(|err| store.error(err))?;
        Ok(store)
    }

    /// Receives a bundle; durable when this returns. With `expected`, anything else is refused. The same content again is
    /// the same bundle.
    ///
    /// # Errors
    /// Nothing is kept then.
    pub fn put(
        &self,
        mut reader: impl Read,
        expected: Option<Digest>,
        max_bytes: u64,
    ) -> Result<(Digest, u64), BundleError> {
        let mut tmp = TmpFile::create(&self.root.join("tmp")).map_err(|err| self.error(err))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut size_bytes = 0;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(BundleError::Source { source }),
            };
            size_bytes += count as u64;
            if size_bytes > max_bytes {
                return Err(BundleError::TooLarge { limit_bytes: max_bytes });
            }
            hasher.update(&buffer[..count]);
            tmp.file.write_all(&buffer[..count]).map_err(|err| self.error(err))?;
        }
        let found = Digest(*hasher.finalize().as_bytes());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(BundleError::Mismatch { expected, found });
        }
        tmp.file.sync_all().map_err(|err| self.error(err))?;
        tmp.place(&self.path(&found))
            .and_then(|()| files::sync_dir(&self.root))
            .map_err(|err| self.error(err))?;
        Ok((found, size_bytes))
    }

    /// # Errors
    /// `Missing`, or `Corrupt` where the bytes on the disk do not have that digest any more.
    pub fn open_bundle(&self, digest: &Digest) -> Result<BundleReader, BundleError> {
        let mut file = File::open(self.path(digest)).map_err(|err| match err.kind() {
            io::ErrorKind::NotFound => BundleError::Missing(*digest),
            _ => self.error(err),
        })?;
        let mut hasher = blake3::Hasher::new();
        let size_bytes = io::copy(&mut file, &mut hasher).map_err(|err| self.error(err))?;
        if hasher.finalize().as_bytes() != &digest.0 {
            return Err(BundleError::Corrupt(*digest));
        }
        file.rewind().map_err(|err| self.error(err))?;
        // When it was used last, for `prune`; a disk that does not take it only makes it look older.
        let _ = file.set_modified(SystemTime::now());
        Ok(BundleReader { file, size_bytes })
    }

    /// Whether it is there; not whether it is undamaged.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Digests and sizes of all bundles, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BundleError> {
        let list = || -> io::Result<Vec<(Digest, u64)>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                    found.push((digest, entry.metadata()?.len()));
                }
            }
            found.sort_unstable();
            Ok(found)
        };
        list().map_err(|err| self.error(err))
    }

    /// Removes what was not used for longest, as long as there are more than `keep.count` bundles *and* more than
    /// `keep.bytes` of them, nobody wants them and they were not used for `keep.age`. How many went.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn prune(&self, keep: Keep, is_wanted: impl Fn(&Digest) -> bool) -> Result<usize, BundleError> {
        let mut found = Vec::new();
        for (digest, size_bytes) in self.list()? {
            let used = fs::metadata(self.path(&digest)).and_then(|meta| meta.modified());
            found.push((used.map_err(|err| self.error(err))?, digest, size_bytes));
        }
        found.sort_unstable();
        let (mut count, mut bytes) = (found.len(), found.iter().map(|(_, _, size)| size).sum::<u64>());
        let now = SystemTime::now();
        let mut removed = 0;
        for (used, digest, size_bytes) in found {
            let is_old = now.duration_since(used).is_ok_and(|age| age >= keep.age);
            if count <= keep.count || bytes <= keep.bytes || !is_old {
                break;
            }
            if !is_wanted(&digest) {
                removed += usize::from(self.remove(&digest)?);
                count -= 1;
                bytes -= size_bytes;
            }
        }
        Ok(removed)
    }

    /// Whether it was there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BundleError> {
        files::remove_if_there(&self.path(digest)).map_err(|err| self.error(err))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.to_string())
    }

    fn error(&self, source: io::Error) -> BundleError {
        if files::is_full(&source) {
            BundleError::Full { source }
        } else {
            BundleError::Io { root: self.root.clone(), source }
        }
    }
}

impl BundleReader {
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Read for BundleReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}
