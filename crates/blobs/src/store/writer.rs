//! Writing one shard: reserve, write and hash in one pass, then make it durable and give it its name.
//!
//! ```text
//!  bytes ─► piece (1 MiB) ─► file ─► hash pool ─► extents, root
//!             ▲  └── every 16 MiB the disk begins ──►┐  │
//!             └──────────── the buffer comes back ◄──┴──┘          finish: fsync, name
//! ```
//! Writing, hashing and the disk go on at once. A piece is hashed from the very buffer that was written, which nobody can
//! change in between: where the bytes came from (a slot that a worker scribbles over) is not looked at a second time.

use std::io::{self, Read, Write};

use outlast_failpoint::{Failpoint, hit};
use outlast_types::Digest;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::{ShardKey, ShardMeta, ShardStore, free_bytes, with_suffix};
use crate::files::{self, TmpFile};
use crate::hash_pool::PieceHasher;
use crate::outboard::Outboard;

/// What is written, and hashed, at a time: the call costs nothing beside it, and it is still in the processor's cache when
/// it is hashed.
const PIECE_BYTES: usize = 1 << 20;
/// The disk is told to begin after so many: or it would idle until the sync, and be waited for then.
const BEGIN_BYTES: u64 = 16 << 20;

/// Why a shard was not written. Nothing of it is left, and nothing else was touched.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the disk is full: {wanted_bytes} bytes were wanted and {free_bytes} are free")]
    Full { wanted_bytes: u64, free_bytes: u64 },
    /// The kernel may have dropped the unsynced pages, so the same file is never synced again: write the shard anew.
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
    tmp: TmpFile,
    /// Being filled, and how much of it is.
    piece: Vec<u8>,
    filled: usize,
    /// How much of the piece is in the file already: only `flush` writes a part of one.
    flushed: usize,
    hasher: PieceHasher,
    size_bytes: u64,
    /// Up to where the disk was told to begin.
    begun_bytes: u64,
    /// Set by a failed write: what reached the disk is then unknown.
    has_failed: bool,
}

impl ShardStore {
    /// Begins a shard. With a hint its space is reserved, so that a full disk is known before the first byte.
    ///
    /// # Errors
    /// `Full` where the hint does not fit.
    pub fn begin(&self, size_hint: Option<u64>) -> Result<ShardWriter, WriteError> {
        let tmp = self.tmp_file().map_err(|err| self.classify(err, 0))?;
        hit(Failpoint::AgentWriteReserve).map_err(|err| self.classify(err, 0))?;
        if let Some(size_bytes) = size_hint.filter(|size| *size > 0) {
            match fallocate(&tmp.file, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
                // A file system that cannot reserve tells of a full disk later.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(err) => return Err(self.classify(err.into(), size_bytes)),
            }
        }
        let extent_bytes = self.inner.extent_bytes;
        let piece_bytes = PIECE_BYTES.min(usize::try_from(extent_bytes).unwrap_or(PIECE_BYTES));
        Ok(ShardWriter {
            store: self.clone(),
            tmp,
            piece: vec![0; piece_bytes],
            filled: 0,
            flushed: 0,
            hasher: PieceHasher::new(self.hash_pool(), piece_bytes, extent_bytes),
            size_bytes: 0,
            begun_bytes: 0,
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
        let outboard_at = with_suffix(&data, "ext");
        let is_new = !data.is_file();
        let placed = files::write_durable(&self.inner.root.join("tmp"), &outboard_at, &outboard.encode())
            .and_then(|()| tmp.place(&data))
            .and_then(|()| hit(Failpoint::AgentWriteAfterRename))
            .and_then(|()| files::remove_if_there(&with_suffix(&data, "bad")))
            .and_then(|_| files::sync_dir(folder));
        let shard = (meta.key, meta.root);
        if let Err(err) = placed {
            // A name that nobody knows of would stay for ever. The same shard, written earlier, is known, or was set aside.
            if is_new && !self.inner.index.lock().contains_key(&shard) {
                let _ = files::remove_if_there(&data);
                let _ = files::remove_if_there(&outboard_at);
            }
            return Err(err);
        }
        meta.sealed = with_suffix(&data, "seal").exists();
        self.inner.index.lock().insert(shard, meta.clone());
        self.inner.aside.lock().remove(&shard);
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
        if self.filled > 0 {
            self.piece.truncate(self.filled);
            self.pass_on().map_err(|err| self.store.classify(err, size_bytes))?;
        }
        let Self { store, tmp, hasher, .. } = self;
        let (root, extents) =
            hasher.finish().map_err(|err| WriteError::Io { source: io::Error::other(err) })?;
        if let Some(announced) = announced.filter(|announced| *announced != (root, size_bytes)) {
            return Err(WriteError::Mismatch { announced, came: (root, size_bytes) });
        }
        // Gives back what was reserved beyond the end.
        tmp.file.set_len(size_bytes).map_err(|err| store.classify(err, size_bytes))?;
        let synced = hit(Failpoint::AgentWriteBeforeFsync).and_then(|()| tmp.file.sync_all());
        synced.map_err(|source| match files::is_full(&source) {
            true => store.classify(source, size_bytes),
            false => WriteError::Sync { source },
        })?;
        let mut meta = ShardMeta { key: *key, root, size_bytes, extents, sealed: false };
        store.publish(tmp, &mut meta).map_err(|err| store.classify(err, size_bytes))?;
        Ok(meta)
    }
}

impl ShardWriter {
    /// Takes over what the source has, at most `size_bytes`; returns how much that was. Without the detour that `write`
    /// makes the bytes take.
    ///
    /// # Errors
    /// What the source or the disk says; the shard cannot be finished then.
    pub fn take_from(&mut self, source: &mut impl Read, size_bytes: u64) -> io::Result<u64> {
        let mut left = size_bytes;
        while left > 0 {
            self.check()?;
            let room = self.piece.len() - self.filled;
            let wanted = usize::try_from(left).map_or(room, |left| left.min(room));
            let count = match source.read(&mut self.piece[self.filled..self.filled + wanted]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => {
                    self.has_failed = true;
                    return Err(err);
                }
            };
            left -= count as u64;
            self.fill(count)?;
        }
        Ok(size_bytes - left)
    }

    fn check(&self) -> io::Result<()> {
        if self.has_failed { Err(io::Error::other(WriteError::Failed)) } else { Ok(()) }
    }

    /// So many bytes more are in the piece.
    fn fill(&mut self, count: usize) -> io::Result<()> {
        if let Err(err) = hit(Failpoint::AgentWriteMiddle) {
            self.has_failed = true;
            return Err(err);
        }
        self.filled += count;
        self.size_bytes += count as u64;
        if self.filled == self.piece.len() { self.pass_on() } else { Ok(()) }
    }

    /// The piece goes to the file, then to be hashed: from here on nobody can change it.
    fn pass_on(&mut self) -> io::Result<()> {
        self.flush()?;
        let piece = std::mem::take(&mut self.piece);
        match self.hasher.push(piece) {
            Ok(next) => self.piece = next,
            Err(err) => {
                self.has_failed = true;
                return Err(io::Error::other(err));
            }
        }
        (self.filled, self.flushed) = (0, 0);
        self.begin_on_disk();
        Ok(())
    }

    /// The kernel writes what it is told that nobody needs in memory, and waits for nothing; what is not written yet it
    /// keeps. Only advice: what goes wrong is told by the sync.
    fn begin_on_disk(&mut self) {
        let begun = self.begun_bytes;
        let count = self.size_bytes - begun;
        if count >= BEGIN_BYTES {
            let _ = fadvise(&self.tmp.file, begun, std::num::NonZeroU64::new(count), Advice::DontNeed);
            self.begun_bytes = self.size_bytes;
        }
    }
}

impl Write for ShardWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        let count = bytes.len().min(self.piece.len() - self.filled);
        self.piece[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        self.fill(count)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        let written = self.tmp.file.write_all(&self.piece[self.flushed..self.filled]);
        self.has_failed |= written.is_err();
        self.flushed = self.filled;
        written
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use outlast_types::{CheckpointSeq, JobId};

    use super::*;
    use crate::extent::{Subtree, subtree};
    use crate::hash_pool::HashPool;

    const EXTENT: u64 = 4096;

    fn dies_at_the_third(offset: u64, bytes: &[u8]) -> Subtree {
        assert!(offset != 2 * EXTENT, "as it should");
        subtree(offset, bytes)
    }

    fn key() -> ShardKey {
        let attempt = "j1/0@1.1".parse().expect("valid");
        ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(1), rank: 0 }
    }

    /// A store whose hashing dies over the third extent.
    fn store(root: &std::path::Path) -> ShardStore {
        let store = ShardStore::open_with_extents(root, EXTENT).expect("a store");
        let pool = Arc::new(HashPool::with(1, dies_at_the_third));
        assert!(store.inner.hash_pool.set(pool).is_ok(), "not started yet");
        store
    }

    #[test]
    fn bytes_that_could_not_be_hashed_are_an_error_and_get_no_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = store(dir.path());
        for extents in [3, 40] {
            let mut writer = store.begin(None).expect("begun");
            let written = writer.write_all(&vec![7; extents * EXTENT as usize]);
            let why = match writer.finish(&key()).expect_err("never a shard") {
                WriteError::Io { source } => source.to_string(),
                WriteError::Failed => written.expect_err("it said so before").to_string(),
                other => panic!("{other}"),
            };
            assert!(why.contains("hashing thread panicked"), "{why}");
            assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0, "nothing is left");
        }
        assert_eq!(store.list(), []);
        let mut writer = store.begin(None).expect("begun");
        writer.write_all(&[7; EXTENT as usize]).expect("written");
        writer.finish(&key()).expect("the next shard is not concerned");
    }

    #[test]
    fn one_that_is_given_up_in_the_middle_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(dir.path()).expect("a store");
        let mut writer = store.begin(Some(64 << 20)).expect("begun");
        writer.write_all(&vec![7; 20 << 20]).expect("written");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 1);
        drop(writer);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
        assert_eq!(store.list(), []);
    }

    #[test]
    fn a_source_that_changes_behind_us_is_hashed_as_it_was_written() {
        /// Gives each byte once, and other bytes to whoever looks again.
        struct Scribbled(u8);
        impl Read for Scribbled {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.wrapping_add(1);
                let count = buffer.len().min(1_000);
                buffer[..count].fill(self.0);
                Ok(count)
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open_with_extents(dir.path(), EXTENT).expect("a store");
        let mut writer = store.begin(None).expect("begun");
        writer.write_all(b"before").expect("written");
        assert_eq!(writer.take_from(&mut Scribbled(0), 100_000).expect("taken"), 100_000);
        writer.flush().expect("flushed");
        writer.write_all(b"after").expect("written");
        let meta = writer.finish(&key()).expect("finished");
        let bytes = fs::read(store.data_path(&meta.key, meta.root)).expect("the file");
        assert_eq!((bytes.len(), meta.size_bytes), (100_011, 100_011));
        assert_eq!(meta.root.0, *blake3::hash(&bytes).as_bytes());
        store.verify(&meta.key, meta.root).expect("sound");
    }
}
