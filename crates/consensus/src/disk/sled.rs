//! The log on sled 0.34.7, made durable: sled's own `flush` writes but does not sync, so every barrier is `flush` and then
//! `fdatasync` on a second descriptor of the database file.
//!
//! One tree for everything, so that one batch changes vote, marks and entries together. Values stay so small
//! (see `frame`) that no page becomes a blob file, which sled never syncs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use sled::{Batch, Db, Mode, Tree};

use super::check::{self, CheckError, Damage};
use super::frame::{self, Assembly};
use super::{DiskOp, DiskReader, MetaKey, RaftDisk, Record};
use crate::folder::sync_dir;

const TREE: &str = "raft";
/// Hot entries are cached above this disk; sled needs room for its index only.
const CACHE_BYTES: u64 = 64 << 20;
/// sled's background flush; barriers do not depend on it, but its garbage collection runs only there.
const FLUSH_EVERY_MS: u64 = 500;
const LOCK_TRIES: usize = 600;
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Keeps one batch of a purge small beside what clients wait for.
const PURGE_KEYS_PER_BATCH: usize = 2_000;

pub(crate) struct SledDisk {
    db: Db,
    tree: Tree,
    reader: Arc<SledReader>,
    /// The second descriptor: sled keeps its own to itself.
    data: File,
}

struct SledReader(RwLock<Option<Tree>>);

fn failed(source: sled::Error) -> io::Error {
    match source {
        sled::Error::Io(source) => source,
        sled::Error::Corruption { .. } => frame::damaged("sled found corruption"),
        other => io::Error::other(other),
    }
}

/// sled's lock on its file can outlive a database that was dropped in this process, and sled tries for it once. A lock
/// belongs to everybody who has the file open: a child that another thread is just starting has it until it runs its own
/// program (on a busy machine with such a thread, one in three reopenings found the lock held, for up to 0.4 s; without
/// one none of 500 did), and a thread of sled's pool has it until it returns from its last write. Neither can be waited for
/// otherwise, both let go by themselves, and our own lock on the folder keeps other coordinators away.
fn open_db(dir: &Path) -> Result<Db, CheckError> {
    for _ in 0..LOCK_TRIES {
        match try_open_db(dir) {
            Err(CheckError::Io(err)) if err.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_RETRY);
            }
            opened => return opened,
        }
    }
    try_open_db(dir)
}

/// An open that was killed or met a full disk leaves `snap.*.generating`, which the next one takes for a snapshot and calls
/// corrupt. The finished one before is removed only after the rename, so that nothing is lost with it.
fn remove_unfinished(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("snap.") && name.to_string_lossy().ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn try_open_db(dir: &Path) -> Result<Db, CheckError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(FLUSH_EVERY_MS))
        .mode(Mode::HighThroughput);
    // sled panics on many kinds of damage.
    match std::panic::catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(source))) if source.kind() != io::ErrorKind::InvalidData => {
            Err(CheckError::Io(source))
        }
        Ok(Err(err)) => Err(Damage::Unopenable { reason: err.to_string() }.into()),
        Err(_) => Err(Damage::Unopenable { reason: "sled panicked".to_owned() }.into()),
    }
}

impl SledDisk {
    /// Makes an empty log that belongs to a coordinator; durable when this returns, directory entries included.
    ///
    /// # Errors
    /// What the disk reports.
    pub(crate) fn create(dir: &Path, cluster_id: &str, coordinator: u64) -> Result<Self, CheckError> {
        let mut disk = Self::open(dir)?;
        let put = |key, value| DiskOp::Put { key, value };
        let ops = [
            put(MetaKey::Format, check::encode(&check::FORMAT)),
            put(MetaKey::Cluster, check::encode(&cluster_id)),
            put(MetaKey::Coordinator, check::encode(&coordinator)),
        ];
        disk.stage(&ops).and_then(|()| disk.sync()).map_err(CheckError::Io)?;
        sync_tree(dir).map_err(CheckError::Io)?;
        Ok(disk)
    }

    /// # Errors
    /// Damage that sled sees, or what the disk reports.
    pub(crate) fn open(dir: &Path) -> Result<Self, CheckError> {
        remove_unfinished(dir).map_err(CheckError::Io)?;
        let db = open_db(dir)?;
        let tree = db.open_tree(TREE).map_err(failed).map_err(CheckError::Io)?;
        let data = File::options().read(true).write(true).open(dir.join("db")).map_err(CheckError::Io)?;
        // Recovery may have written a new `snap.*` file under a new name.
        sync_dir(dir).map_err(CheckError::Io)?;
        let reader = Arc::new(SledReader(RwLock::new(Some(tree.clone()))));
        Ok(Self { db, tree, reader, data })
    }

    fn purge(&self, to: u64, batch: &mut Batch) -> io::Result<()> {
        let mut staged = 0;
        for item in self.tree.range(frame::record_key(0, 0)..=frame::record_key(to, u16::MAX)) {
            batch.remove(item.map_err(failed)?.0);
            staged += 1;
            if staged == PURGE_KEYS_PER_BATCH {
                self.tree.apply_batch(std::mem::take(batch)).map_err(failed)?;
                staged = 0;
            }
        }
        Ok(())
    }

    fn truncate(&self, from: u64, batch: &mut Batch) -> io::Result<()> {
        for item in self.tree.range(frame::record_key(from, 0)..=frame::record_key(u64::MAX, u16::MAX)) {
            batch.remove(item.map_err(failed)?.0);
        }
        Ok(())
    }
}

/// Syncs the files of a new database, its folders and the folder that it is in.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync_dir(&path)? } else { File::open(&path)?.sync_all()? }
    }
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

impl RaftDisk for SledDisk {
    fn stage(&mut self, ops: &[DiskOp]) -> io::Result<()> {
        let mut batch = Batch::default();
        for op in ops {
            match op {
                DiskOp::Append(records) => {
                    for (key, value) in records.iter().flat_map(frame::encode_record) {
                        batch.insert(&key[..], value);
                    }
                }
                DiskOp::Truncate { from } => {
                    // What this group appended before has to be in the tree to be found there.
                    self.tree.apply_batch(std::mem::take(&mut batch)).map_err(failed)?;
                    self.truncate(*from, &mut batch)?;
                }
                DiskOp::Purge { to } => self.purge(*to, &mut batch)?,
                DiskOp::Put { key, value } => {
                    batch.insert(frame::meta_key(*key), frame::encode_meta(*key, value))
                }
            }
        }
        self.tree.apply_batch(batch).map_err(failed)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.db.flush().map_err(failed)?;
        self.data.sync_data()
    }

    fn reader(&self) -> Arc<dyn DiskReader> {
        Arc::clone(&self.reader) as Arc<dyn DiskReader>
    }
}

impl SledReader {
    fn tree(&self) -> io::Result<Tree> {
        self.0.read().clone().ok_or_else(|| io::Error::other("the log is closed"))
    }
}

impl DiskReader for SledReader {
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>> {
        let tree = self.tree()?;
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut open: Option<(u64, Assembly)> = None;
        for item in tree.range(frame::record_key(range.start, 0)..frame::record_key(range.end, 0)) {
            let (key, value) = item.map_err(failed)?;
            let (index, number) =
                frame::parse_record_key(&key).ok_or_else(|| frame::damaged("a strange key"))?;
            let part = frame::decode_part(&key, &value)?;
            let (_, assembly) = match &mut open {
                Some(current) if current.0 == index => current,
                Some(current) => return Err(frame::damaged(format!("record {} lacks parts", current.0))),
                None => open.insert((index, Assembly::start(index, &part))),
            };
            assembly.push(number, &part)?;
            if let Some(record) = assembly.finished() {
                bytes += record.payload.len();
                records.push(record);
                open = None;
                if bytes >= bytes_max {
                    break;
                }
            }
        }
        match open {
            Some((index, _)) => Err(frame::damaged(format!("record {index} lacks parts"))),
            None => Ok(records),
        }
    }

    fn meta(&self, key: MetaKey) -> io::Result<Option<Vec<u8>>> {
        let value = self.tree()?.get(frame::meta_key(key)).map_err(failed)?;
        value.map(|value| frame::decode_meta(key, &value)).transpose()
    }

    fn bounds(&self) -> io::Result<Option<(u64, u64)>> {
        let tree = self.tree()?;
        let mut keys = tree.range(frame::record_key(0, 0)..).keys();
        let index = |key: Option<sled::Result<sled::IVec>>| -> io::Result<Option<u64>> {
            key.transpose()
                .map_err(failed)
                .map(|key| key.and_then(|key| Some(frame::parse_record_key(&key)?.0)))
        };
        let first = index(keys.next())?;
        let last = index(keys.next_back())?.or(first);
        Ok(first.zip(last))
    }

    fn close(&self) {
        self.0.write().take();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::folder::Folder;

    #[test]
    fn what_an_open_without_room_left_behind_does_not_spoil_the_next_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("raft");
        drop(SledDisk::create(&path, "test", 1).expect("a new log"));
        drop(SledDisk::open(&path).expect("opens"));
        let unfinished = path.join("snap.00000000FFFFFFFF.generating");
        std::fs::write(&unfinished, b"").expect("written");
        let disk = SledDisk::open(&path).expect("opens");
        assert!(!unfinished.exists());
        assert!(
            disk.reader().meta(MetaKey::Coordinator).expect("readable").is_some(),
            "the log is the old one"
        );
    }

    /// Children that are being started hold the locks of sled and of the folder for a moment longer than we do.
    #[test]
    fn a_log_opens_again_while_other_threads_start_children() {
        let dir = tempfile::tempdir().expect("temp dir");
        drop(Folder::create(dir.path()).expect("made"));
        let path = dir.path().join("raft");
        drop(SledDisk::create(&path, "test", 1).expect("a new log"));
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !enough.load(Ordering::Relaxed) {
                        let _ = std::process::Command::new("true").status();
                    }
                });
            }
            let reopened = std::panic::catch_unwind(|| {
                for _ in 0..40 {
                    let folder = Folder::open(dir.path()).expect("nobody else has it").expect("made");
                    drop(SledDisk::open(&path).expect("nobody else has it"));
                    drop(folder);
                }
            });
            enough.store(true, Ordering::Relaxed);
            assert!(reopened.is_ok());
        });
    }
}
