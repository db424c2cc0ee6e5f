//! The log on sled 0.34.7, made durable: sled's own `flush` writes but does not sync, so every barrier is `flush` and then
//! `fdatasync` on a second descriptor of the database file.
//!
//! One tree for everything, so that one batch changes vote, marks and entries together. Values stay below 64 KiB: larger
//! ones would become blob files, which sled never syncs.

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

/// sled's background threads may hold its lock file for a moment after a database was dropped in this process. Our own
/// lock on the folder keeps other processes away, so whoever holds it lets go soon.
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
