//! Writing one shard: reserve, write and hash in one pass, then make it durable and give it its name.

use std::io::{self, BufWriter, Write};

use outlast_types::Digest;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{ShardKey, ShardMeta, ShardStore, free_bytes, with_suffix};
use crate::extent::ExtentHasher;
use crate::files::{self, TmpFile};
use crate::outboard::Outboard;

/// Small writes are gathered to this before they reach the disk.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a shard was not written. Nothing of it is left, and nothing else was touched.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the disk is full: {wanted_bytes} bytes were wanted and {free_bytes} are free")]
    Full { wanted_bytes: u64, free_bytes: u64 },
    /// The kernel may have dropped the unsynced pages, so the same file is never synced again. Write the shard anew, and
    /// suspect the disk.
    #[error("the disk did not confirm the bytes; it may be failing")]
    Sync {
        #[source]
        source: io::Error,
    },
    #[error("the shard's key names job {job} but its attempt belongs to another job", job = key.job)]
    Key { key: ShardKey },
    #[error("{} with {} bytes was announced, {} with {} came", announced.0, announced.1, came.0, came.1)]
    Mismatch { announced: (Digest, u64), came: (Digest, u64) },
    #[error("an earlier write to this shard failed, so it can not be finished")]
    Failed,
    #[error("the shard could not be written")]
    Io {
        #[source]
        source: io::Error,
    },
}

/// A shard being written, as `io::Write`. Dropped unfinished, it leaves nothing behind.
pub struct ShardWriter {
    store: ShardStore,
    out: Option<BufWriter<TmpFile>>,
    hasher: ExtentHasher,
    size_bytes: u64,
    /// Set by a failed write: what reached the disk is then unknown.
    has_failed: bool,
}

impl Write for TmpFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ShardStore {
    /// Begins a shard. With a hint its space is reserved, so that a full disk is known before the first byte.
    ///
    /// # Errors
    /// `Full` where the hint does not fit.
    pub fn begin(&self, size_hint: Option<u64>) -> Result<ShardWriter, WriteError> {
        let tmp = self.tmp_file().map_err(|err| self.classify(err, 0))?;
        if let Some(size_bytes) = size_hint.filter(|size| *size > 0) {
            match fallocate(&tmp.file, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
                // A file system that cannot reserve tells of a full disk later.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(err) => return Err(self.classify(err.into(), size_bytes)),
            }
        }
        Ok(ShardWriter {
            store: self.clone(),
            out: Some(BufWriter::with_capacity(BUFFER_BYTES, tmp)),
            hasher: ExtentHasher::new(self.inner.extent_bytes),
            size_bytes: 0,
            has_failed: false,
        })
    }

    /// Somebody may have deleted the folders under us: the disk is still there, and new bytes have to go somewhere.
    fn tmp_file(&self) -> io::Result<TmpFile> {
        let tmp = self.inner.root.join("tmp");
        match TmpFile::create(&tmp) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                files::create_dir_durable(&tmp)?;
                files::create_dir_durable(&self.inner.root.join("blobs"))?;
                TmpFile::create(&tmp)
            }
            made => made,
        }
    }

    pub(crate) fn classify(&self, source: io::Error, wanted_bytes: u64) -> WriteError {
        if files::is_full(&source) {
            let free_bytes = free_bytes(&self.inner.root).unwrap_or(0);
            return WriteError::Full { wanted_bytes, free_bytes };
        }
        WriteError::Io { source }
    }

    /// Gives synced bytes their name: hashes first, so that bytes with a name always have hashes.
    fn publish(&self, tmp: TmpFile, meta: &mut ShardMeta) -> io::Result<()> {
        let data = self.data_path(&meta.key, meta.root);
        let folder = data.parent().expect("a shard lies in a folder");
        let outboard = Outboard {
            extent_bytes: self.inner.extent_bytes,
            size_bytes: meta.size_bytes,
            root: meta.root,
            extents: meta.extents.clone(),
        };
        let _layout = self.inner.layout.lock();
        files::create_dir_durable(folder)?;
        files::write_durable(&self.inner.root.join("tmp"), &with_suffix(&data, "ext"), &outboard.encode())?;
        tmp.place(&data)?;
        files::remove_if_there(&with_suffix(&data, "bad"))?;
        files::sync_dir(folder)?;
        meta.sealed = with_suffix(&data, "seal").exists();
        self.inner.index.lock().insert((meta.key, meta.root), meta.clone());
        Ok(())
    }
}

impl ShardWriter {
    /// Makes the bytes durable under their key and root. When this returns `Ok`, they survive a power cut: a receipt may
    /// be given. The same bytes again are the same shard.
    ///
    /// # Errors
    /// See `WriteError`.
    pub fn finish(self, key: &ShardKey) -> Result<ShardMeta, WriteError> {
        self.finish_checked(key, None)
    }

    /// Like `finish`, for bytes that somebody else has announced: any others never get a name here.
    ///
    /// # Errors
    /// `Mismatch`, or what `finish` says.
    pub fn finish_as(self, key: &ShardKey, root: Digest, size_bytes: u64) -> Result<ShardMeta, WriteError> {
        self.finish_checked(key, Some((root, size_bytes)))
    }

    fn finish_checked(
        mut self,
        key: &ShardKey,
        announced: Option<(Digest, u64)>,
    ) -> Result<ShardMeta, WriteError> {
        if key.job != key.attempt.group.job {
            return Err(WriteError::Key { key: *key });
        }
        if self.has_failed {
            return Err(WriteError::Failed);
        }
        let size_bytes = self.size_bytes;
        let out = self.out.take().expect("only finish takes it");
        let tmp = out.into_inner().map_err(|err| self.store.classify(err.into_error(), size_bytes))?;
        let hasher = std::mem::replace(&mut self.hasher, ExtentHasher::new(self.store.inner.extent_bytes));
        let (root, extents) = hasher.finish();
        if let Some(announced) = announced.filter(|announced| *announced != (root, size_bytes)) {
            return Err(WriteError::Mismatch { announced, came: (root, size_bytes) });
        }
        // Gives back what was reserved beyond the end.
        tmp.file.set_len(size_bytes).map_err(|err| self.store.classify(err, size_bytes))?;
        tmp.file.sync_all().map_err(|source| match files::is_full(&source) {
            true => self.store.classify(source, size_bytes),
            false => WriteError::Sync { source },
        })?;
        let mut meta = ShardMeta { key: *key, root, size_bytes, extents, sealed: false };
        self.store.publish(tmp, &mut meta).map_err(|err| self.store.classify(err, size_bytes))?;
        Ok(meta)
    }
}

impl Write for ShardWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::Error::other(WriteError::Failed));
        }
        let out = self.out.as_mut().expect("only finish takes it");
        match out.write(bytes) {
            Ok(count) => {
                self.hasher.update(&bytes[..count]);
                self.size_bytes += count as u64;
                Ok(count)
            }
            Err(err) => {
                self.has_failed |= err.kind() != io::ErrorKind::Interrupted;
                Err(err)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.as_mut().expect("only finish takes it").flush();
        self.has_failed |= flushed.is_err();
        flushed
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // Without this, the buffer would be written to a file that is about to be deleted.
        if let Some(out) = self.out.take() {
            drop(out.into_parts());
        }
    }
}
