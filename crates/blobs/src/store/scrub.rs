//! Looking after what lies on the disk: reading it back past the page cache, and setting aside what went bad.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use outlast_types::Digest;
use rustix::fs::{Advice, fadvise};

use super::{ReadError, ShardKey, ShardStore, with_suffix};
use crate::files;

impl ShardStore {
    /// Reads the whole shard from the medium, not from memory, and verifies every extent. `between` is called after each
    /// extent with its bytes' count, so that the caller can pace the reading; where it says no, the reading ends.
    ///
    /// # Errors
    /// The first thing that is wrong with it; `Transient` of kind `Interrupted` where `between` ended it.
    pub fn read_back(
        &self,
        key: &ShardKey,
        root: Digest,
        mut between: impl FnMut(u64) -> bool,
    ) -> Result<(), ReadError> {
        let data = self.data_path(key, root);
        for path in [data.clone(), with_suffix(&data, "ext")] {
            forget_cached(&path);
        }
        let mut reader = self.open_shard(key, root)?;
        while let Some(extent) = reader.next_extent()? {
            let count = extent.len() as u64;
            if !between(count) {
                let source = io::Error::from(io::ErrorKind::Interrupted);
                return Err(ReadError::Transient { source });
            }
        }
        forget_cached(&data);
        Ok(())
    }

    /// Whether the shard's file is there with its size: cheap enough to be asked of all shards every few seconds.
    ///
    /// # Errors
    /// `Missing`, `Corrupt` for another size, `Transient` where the disk does not say.
    pub fn look(&self, key: &ShardKey, root: Digest) -> Result<(), ReadError> {
        let Some(size_bytes) = self.inner.index.lock().get(&(*key, root)).map(|meta| meta.size_bytes) else {
            return Err(ReadError::Missing);
        };
        match fs::metadata(self.data_path(key, root)) {
            Ok(meta) if meta.len() == size_bytes => Ok(()),
            Ok(_) => Err(ReadError::Corrupt { extent: 0 }),
            Err(err) => Err(self.unless_unmounted(ReadError::from_io(err, 0))),
        }
    }

    /// A disk that is not mounted has lost nothing: its bytes come back with it.
    pub(super) fn unless_unmounted(&self, error: ReadError) -> ReadError {
        let there = self.inner.root.ancestors().find_map(|folder| fs::metadata(folder).ok());
        let is_elsewhere = there.is_none_or(|there| there.dev() != self.inner.device);
        match error {
            ReadError::Missing if is_elsewhere => {
                let source = io::Error::other("the disk of the data folder is not mounted");
                ReadError::Transient { source }
            }
            other => other,
        }
    }

    /// Notes that the object store may have this shard from here, durably: before it has.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn mark_stored(&self, key: &ShardKey, root: Digest) -> io::Result<()> {
        let path = with_suffix(&self.data_path(key, root), "stored");
        files::write_durable(&self.inner.root.join("tmp"), &path, b"")
    }

    /// Whether the object store may have this shard from here.
    pub fn is_stored(&self, key: &ShardKey, root: Digest) -> bool {
        with_suffix(&self.data_path(key, root), "stored").exists()
    }

    /// How long ago the shard was written; `None` where the disk does not say.
    pub fn age(&self, key: &ShardKey, root: Digest) -> Option<Duration> {
        fs::metadata(self.data_path(key, root)).ok()?.modified().ok()?.elapsed().ok()
    }

    /// A shard whose bytes are bad is a shard no more. The bytes stay beside, as evidence, until a good copy comes or the
    /// checkpoint is retired.
    ///
    /// # Errors
    /// When the disk refuses; the shard is not counted all the same.
    pub fn set_aside(&self, key: &ShardKey, root: Digest) -> io::Result<()> {
        let data = self.data_path(key, root);
        let _layout = self.inner.layout.lock();
        self.inner.index.lock().remove(&(*key, root));
        files::remove_if_there(&with_suffix(&data, "ext"))?;
        // A seal without bytes is still a name to be removed with the checkpoint.
        if with_suffix(&data, "seal").exists() || data.exists() {
            self.inner.aside.lock().insert((*key, root));
        }
        match fs::rename(&data, with_suffix(&data, "bad")) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
            Ok(()) => files::sync_dir(data.parent().expect("a shard lies in a folder")),
        }
    }
}

/// Best effort: a file system without the call reads from where it likes.
fn forget_cached(path: &std::path::Path) {
    if let Ok(file) = File::open(path) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use outlast_types::{CheckpointSeq, JobId};

    use super::*;

    fn store_with_a_shard() -> (tempfile::TempDir, ShardStore, ShardKey, Digest) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open_with_extents(dir.path(), 1 << 10).expect("opens");
        let attempt = "j1/0@1.1".parse().expect("valid");
        let key = ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(1), rank: 0 };
        let mut writer = store.begin(None).expect("begins");
        writer.write_all(&[7; 5_000]).expect("writes");
        let root = writer.finish(&key).expect("finishes").root;
        (dir, store, key, root)
    }

    #[test]
    fn what_rots_is_found_set_aside_and_replaced_by_a_good_copy() {
        let (_dir, store, key, root) = store_with_a_shard();
        let mut read = 0;
        store
            .read_back(&key, root, |count| {
                read += count;
                true
            })
            .expect("good");
        assert_eq!(read, 5_000);
        let data = store.data_path(&key, root);
        let mut bytes = fs::read(&data).expect("there");
        bytes[3_000] ^= 4;
        fs::write(&data, &bytes).expect("written");
        assert!(matches!(store.read_back(&key, root, |_| true), Err(ReadError::Corrupt { extent: 2 })));
        store.set_aside(&key, root).expect("set aside");
        assert!(store.list().is_empty() && matches!(store.look(&key, root), Err(ReadError::Missing)));
        assert!(with_suffix(&data, "bad").exists(), "evidence");
        let mut writer = store.begin(None).expect("begins");
        writer.write_all(&[7; 5_000]).expect("writes");
        writer.finish_as(&key, root, 5_000).expect("a good copy");
        assert!(store.look(&key, root).is_ok() && !with_suffix(&data, "bad").exists());
    }

    #[test]
    fn a_file_that_is_gone_or_cut_is_seen_without_reading_it() {
        let (_dir, store, key, root) = store_with_a_shard();
        assert!(store.look(&key, root).is_ok());
        let data = store.data_path(&key, root);
        fs::write(&data, [7; 10]).expect("written");
        assert!(matches!(store.look(&key, root), Err(ReadError::Corrupt { .. })));
        fs::remove_file(&data).expect("removed");
        assert!(matches!(store.look(&key, root), Err(ReadError::Missing)));
    }

    #[test]
    fn a_store_whose_folders_were_deleted_takes_new_shards() {
        let (dir, store, key, root) = store_with_a_shard();
        fs::remove_dir_all(dir.path()).expect("removed");
        assert!(matches!(store.look(&key, root), Err(ReadError::Missing)));
        store.set_aside(&key, root).expect("nothing to set aside");
        let mut writer = store.begin(Some(10)).expect("begins");
        writer.write_all(&[1; 10]).expect("writes");
        writer.finish(&key).expect("finishes");
        assert_eq!(store.list().len(), 1);
    }
}
