//! Where snapshots lie: `snap-<term>-<index>`, written as `.tmp`, synced, renamed, the folder synced; two are kept.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::Snapshot;
use outlast_control::state::{ClusterState, decode_state};
use outlast_types::ClusterId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::format::{self, SnapshotError, SnapshotHead};
use crate::disk::{Damage, LogMark};
use crate::folder::sync_dir;
use crate::types::TypeConfig;

/// The newest, and the one before for the case that the newest is damaged.
const SNAPSHOTS_KEPT: usize = 2;
const BUFFER_BYTES: usize = 256 << 10;
const INCOMING_PREFIX: &str = "incoming-";

/// A snapshot file. The open descriptor keeps the bytes readable after a newer snapshot replaced the file.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotData {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
}

impl SnapshotData {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Arc::new(File::options().read(true).write(true).open(path)?) })
    }

    pub(crate) fn read(&self) -> Result<(SnapshotHead, Vec<u8>), SnapshotError> {
        let from_start = Positioned { file: Arc::clone(&self.file), at: 0 };
        format::read_snapshot(&mut BufReader::with_capacity(BUFFER_BYTES, from_start))
    }
}

/// Reads without the descriptor's own position, which others share.
struct Positioned {
    file: Arc<File>,
    at: u64,
}

impl io::Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// What was found when the folder was opened.
pub(crate) struct SnapshotStore {
    pub(crate) snapshots: Snapshots,
    pub(crate) newest: Option<(SnapshotHead, ClusterState)>,
}

#[derive(Clone)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    cluster_id: ClusterId,
    current: Arc<Mutex<Option<(SnapshotHead, SnapshotData)>>>,
    incoming: Arc<std::sync::atomic::AtomicU64>,
    covered: Arc<watch::Sender<Covered>>,
}

/// How many entries from the log's beginning a durable snapshot covers: only those may leave the log. `None` when
/// installing a snapshot failed.
pub(crate) type Covered = Option<u64>;

fn parse_name(name: &str) -> Option<LogMark> {
    let (term, index) = name.strip_prefix("snap-")?.split_once('-')?;
    Some(LogMark { term: term.parse().ok()?, index: index.parse().ok()? })
}

fn listed(dir: &Path) -> io::Result<Vec<(LogMark, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().and_then(parse_name) {
            Some(mark) => found.push((mark, entry.path())),
            // What was being written or received when the process ended.
            None if entry.path().extension().is_some_and(|ext| ext == "tmp") => {
                std::fs::remove_file(entry.path())?
            }
            None => {}
        }
    }
    found.sort_by_key(|(mark, _)| std::cmp::Reverse((mark.index, mark.term)));
    Ok(found)
}

/// Reads every snapshot there is, newest first, and changes nothing: its name, and the index that it covers.
///
/// # Errors
/// The folder cannot be listed; what is wrong with one snapshot is in its place.
pub(crate) fn inspect(
    dir: &Path,
    cluster_id: &ClusterId,
) -> io::Result<Vec<(LogMark, Result<(), SnapshotError>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(at) = entry.file_name().to_str().and_then(parse_name) {
            found.push((at, entry.path()));
        }
    }
    found.sort_by_key(|(at, _)| std::cmp::Reverse((at.index, at.term)));
    let dir = dir.to_owned();
    let snapshots = Snapshots {
        dir,
        cluster_id: cluster_id.clone(),
        current: Arc::default(),
        incoming: Arc::default(),
        covered: Arc::new(watch::Sender::new(Some(0))),
    };
    Ok(found.into_iter().map(|(at, path)| (at, snapshots.load(&path).map(drop))).collect())
}

impl SnapshotStore {
    /// Loads the newest good snapshot that the log goes on from; `purged` is where the log begins.
    ///
    /// # Errors
    /// `Ok(Err(..))`: no snapshot fits, so the state cannot be rebuilt here. `Err`: the disk's own error.
    pub(crate) fn open(
        dir: PathBuf,
        cluster_id: ClusterId,
        purged: Option<LogMark>,
    ) -> io::Result<Result<Self, Damage>> {
        std::fs::create_dir_all(&dir)?;
        let covered = Arc::new(watch::Sender::new(Some(0)));
        let snapshots =
            Snapshots { dir, cluster_id, current: Arc::default(), incoming: Arc::default(), covered };
        let mut newest = None;
        let mut reasons = Vec::new();
        for (at, path) in listed(&snapshots.dir)? {
            if purged.is_some_and(|purged| at.index < purged.index) {
                reasons.push(format!("{} is older than the log's beginning", path.display()));
                break;
            }
            match snapshots.load(&path) {
                Ok((head, data, state)) => {
                    snapshots.covers(&head);
                    *snapshots.current.lock() = Some((head.clone(), data));
                    newest = Some((head, state));
                    break;
                }
                Err(err) => {
                    let reason = crate::fatal::chain(&err);
                    tracing::warn!(path = %path.display(), reason, "a snapshot is damaged; trying the one before");
                    reasons.push(format!("{}: {reason}", path.display()));
                    std::fs::rename(&path, path.with_extension("damaged"))?;
                }
            }
        }
        if newest.is_none() && purged.is_some() {
            return Ok(Err(Damage::Snapshot {
                reason: if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") },
            }));
        }
        Ok(Ok(Self { snapshots, newest }))
    }
}

impl Snapshots {
    fn load(&self, path: &Path) -> Result<(SnapshotHead, SnapshotData, ClusterState), SnapshotError> {
        let data = SnapshotData::open(path)?;
        let (head, state) = self.verified(&data)?;
        Ok((head, data, state))
    }

    /// Reads all of a file, checks it and decodes its state.
    pub(crate) fn verified(
        &self,
        data: &SnapshotData,
    ) -> Result<(SnapshotHead, ClusterState), SnapshotError> {
        let (head, body) = data.read()?;
        if head.cluster_id != self.cluster_id {
            return Err(SnapshotError::WrongCluster {
                found: head.cluster_id,
                expected: self.cluster_id.clone(),
            });
        }
        let state = decode_state(&body).map_err(SnapshotError::State)?;
        Ok((head, state))
    }

    pub(crate) fn head(
        &self,
        last_log: Option<crate::types::LogId>,
        membership: crate::types::StoredMembership,
    ) -> SnapshotHead {
        SnapshotHead::new(self.cluster_id.clone(), last_log, membership)
    }

    pub(crate) fn current(&self) -> Option<Snapshot<TypeConfig>> {
        let current = self.current.lock();
        let (head, data) = current.as_ref()?;
        Some(Snapshot { meta: head.meta(), snapshot: Box::new(data.clone()) })
    }

    /// Writes a new snapshot and makes it the current one, unless a newer one was installed meanwhile.
    pub(crate) fn write(&self, head: &SnapshotHead, body: &[u8]) -> io::Result<Snapshot<TypeConfig>> {
        let path = self.dir.join(head.file_name());
        let tmp = path.with_extension("tmp");
        // On a full disk what was begun must not take the room that is left.
        write_synced(&tmp, head, body).inspect_err(|_| drop(std::fs::remove_file(&tmp)))?;
        self.adopt(&tmp, head, SNAPSHOTS_KEPT)
    }

    /// See [`Covered`].
    pub(crate) fn covered(&self) -> watch::Receiver<Covered> {
        self.covered.subscribe()
    }

    /// To be called when the snapshot is durable.
    fn covers(&self, head: &SnapshotHead) {
        let next = head.last_log.map_or(0, |last| last.index + 1);
        self.covered.send_modify(|covered| *covered = covered.map(|before| before.max(next)));
    }

    /// Moves a verified file to its name. The rename is the commit point.
    fn adopt(&self, from: &Path, head: &SnapshotHead, kept: usize) -> io::Result<Snapshot<TypeConfig>> {
        let path = self.dir.join(head.file_name());
        std::fs::rename(from, &path)?;
        sync_dir(&self.dir)?;
        self.covers(head);
        let data = SnapshotData::open(&path)?;
        let mut current = self.current.lock();
        if current.as_ref().is_none_or(|(older, _)| older.last_log <= head.last_log) {
            *current = Some((head.clone(), data.clone()));
        }
        drop(current);
        self.delete_older(kept)?;
        Ok(Snapshot { meta: head.meta(), snapshot: Box::new(data) })
    }

    fn delete_older(&self, kept: usize) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(mark) = entry.file_name().to_str().and_then(parse_name) {
                found.push((mark, entry.path()));
            }
        }
        found.sort_by_key(|(mark, _)| std::cmp::Reverse((mark.index, mark.term)));
        found.drain(..).skip(kept).try_for_each(|(_, path)| std::fs::remove_file(path))
    }

    /// A file to receive a snapshot into.
    pub(crate) fn incoming(&self) -> io::Result<SnapshotData> {
        let number = self.incoming.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.dir.join(format!("{INCOMING_PREFIX}{number}.tmp"));
        File::create(&path)?;
        SnapshotData::open(&path)
    }

    /// Verifies a received file, makes it the current snapshot and removes all others: the log does not lead to them
    /// any more.
    pub(crate) fn install(&self, data: &SnapshotData) -> Result<(SnapshotHead, ClusterState), SnapshotError> {
        // Whoever waits to purge what it covers would wait in vain.
        self.try_install(data).inspect_err(|_| self.covered.send_modify(|covered| *covered = None))
    }

    fn try_install(&self, data: &SnapshotData) -> Result<(SnapshotHead, ClusterState), SnapshotError> {
        let (head, state) = self.verified(data)?;
        let tmp = self.dir.join(format!("{}.tmp", head.file_name()));
        if data.path.parent() == Some(&self.dir) && data.path.extension().is_some_and(|ext| ext == "tmp") {
            std::fs::rename(&data.path, &tmp)?;
        } else {
            std::fs::copy(&data.path, &tmp)?;
        }
        File::open(&tmp)?.sync_all()?;
        *self.current.lock() = None;
        self.adopt(&tmp, &head, 1)?;
        Ok((head, state))
    }
}

fn write_synced(path: &Path, head: &SnapshotHead, body: &[u8]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
    format::write_snapshot(&mut out, head, body)?;
    out.flush()?;
    out.get_ref().sync_all()
}

#[cfg(test)]
mod tests {
    use outlast_control::state::encode_state;

    use super::*;
    use crate::types::{StoredMembership, log_id};

    fn at(index: u64) -> LogMark {
        LogMark { term: 1, index }
    }

    fn open(dir: &Path, purged: Option<u64>) -> Result<SnapshotStore, Damage> {
        let cluster_id = ClusterId::new("test").expect("valid");
        SnapshotStore::open(dir.to_owned(), cluster_id, purged.map(at)).expect("io")
    }

    fn write(store: &SnapshotStore, index: u64) {
        let mut state = ClusterState::new();
        state.applied = index;
        let head = store.snapshots.head(Some(log_id(at(index))), StoredMembership::default());
        store.snapshots.write(&head, &encode_state(&state)).expect("written");
    }

    fn newest(store: &SnapshotStore) -> Option<u64> {
        store.newest.as_ref().map(|(_, state)| state.applied)
    }

    #[test]
    fn two_snapshots_are_kept_and_a_damaged_newest_one_gives_way_to_the_one_before_if_the_log_covers_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = open(dir.path(), None).expect("empty");
        assert_eq!(newest(&store), None);
        [10, 20, 30].iter().for_each(|index| write(&store, *index));
        let kept = std::fs::read_dir(dir.path()).expect("dir").count();
        assert_eq!(kept, 2);
        assert_eq!(newest(&open(dir.path(), Some(15)).expect("good")), Some(30));
        let path = dir.path().join("snap-1-30");
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        let err = open(dir.path(), Some(25)).err().expect("the log begins after the older one");
        assert!(err.to_string().contains("no snapshot can be used"), "{err}");
        std::fs::write(&path, &bytes).expect("write");
        assert_eq!(newest(&open(dir.path(), Some(15)).expect("the older one")), Some(20));
        assert!(matches!(open(&dir.path().join("none"), Some(15)), Err(Damage::Snapshot { .. })));
    }
}
