//! One survivor of a cluster whose majority is lost for good: all that its folder knows, and the new cluster made of it.
//!
//! ```text
//! DIR ─► lock ─► check (deep) ─► newest snapshot + every entry, committed or not ─► state
//!   new folder beside DIR ─► DIR and it change places (one step) ─► the old one is DIR.before-<new cluster>
//! ```
//! Nothing is deleted, and after a crash DIR is either the old folder or the new one, whole.

use std::path::{Path, PathBuf};

use outlast_control::state::ClusterState;
use outlast_types::{ClusterId, CoordinatorId};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::config::DiskChoice;
use crate::disk::check::{CheckError, check_log};
use crate::disk::{Damage, LogMark};
use crate::fatal::chain;
use crate::folder::{Folder, sync_dir};
use crate::machine::Machine;
use crate::open::{Opened, Paths, open_checked};
use crate::rebuild::{NewCluster, RebuildError, Rebuilt, rebuild};
use crate::types::entry_of;

/// Entries that are read at a time.
const CHUNK_ENTRIES: u64 = 256;
const CHUNK_BYTES: usize = 8 << 20;

/// A stopped coordinator's folder, read whole. Keeps the folder's lock.
#[derive(Debug)]
pub struct Survivor {
    folder: Folder,
    state: ClusterState,
    last: LogMark,
    pub cluster_id: ClusterId,
    pub coordinator: CoordinatorId,
    /// Entries at the log's end that this coordinator did not know as committed. They come to be now.
    pub uncommitted: u64,
}

impl Survivor {
    /// Reads the folder of a coordinator that is stopped.
    ///
    /// # Errors
    /// See [`RebuildError`]; a damaged folder is named, and left as it is.
    pub fn open(dir: &Path) -> Result<Self, RebuildError> {
        let none = || RebuildError::NoCoordinator { path: dir.to_owned() };
        // By its real name: what is moved is the folder, not a link to it.
        let dir = dir.canonicalize().map_err(|_| none())?;
        let folder = Folder::open(&dir)?.ok_or_else(none)?;
        let identity = folder.identity()?.ok_or_else(none)?;
        let failed = |err| match err {
            CheckError::Io(source) => RebuildError::Disk(source),
            CheckError::Damage(damage) => RebuildError::Damaged { path: dir.clone(), damage },
        };
        let Opened { disk, recovered, snapshots, .. } =
            open_checked(&DiskChoice::Sled, &Paths::of(&folder), &identity).map_err(failed)?;
        let reader = disk.reader();
        check_log(&*reader, true).map_err(failed)?;
        let (state, last) = replay(snapshots, &*reader, recovered.last).map_err(|err| match err {
            ReplayError::Read(source) if source.kind() == std::io::ErrorKind::InvalidData => {
                failed(Damage::Bad { what: "log".to_owned(), source }.into())
            }
            ReplayError::Read(source) => RebuildError::Disk(source),
            ReplayError::Entry { index, reason } => RebuildError::Entry { index, reason },
        })?;
        reader.close();
        let last = last.filter(|_| state.config.is_some()).ok_or(RebuildError::NoCluster)?;
        let committed = recovered.committed.or(recovered.purged).map_or(0, |mark| mark.index);
        Ok(Self {
            folder,
            state,
            last,
            cluster_id: identity.cluster_id,
            coordinator: identity.coordinator,
            uncommitted: last.index.saturating_sub(committed),
        })
    }

    /// The newest entry that it has.
    pub fn index(&self) -> u64 {
        self.last.index
    }

    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Puts the first member of a new cluster in the folder's place, and says where the old folder is kept.
    ///
    /// # Errors
    /// See [`RebuildError`]; but for [`RebuildError::NotMoved`] the old folder is as it was.
    pub fn become_cluster(self, new: NewCluster) -> Result<(Rebuilt, PathBuf), RebuildError> {
        let dir = self.folder.root().to_owned();
        let beside = |what: &str| {
            let mut name = dir.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{what}-{}", new.cluster_id));
            dir.with_file_name(name)
        };
        let (making, kept) = (beside("recovering"), beside("before"));
        let folder = Folder::create(&making)?;
        let rebuilt = rebuild(&folder, self.state, self.last, new)?;
        let not_moved = |source| RebuildError::NotMoved { old: dir.clone(), new: making.clone(), source };
        let parent = dir.parent().unwrap_or(Path::new("/"));
        exchange(&making, &dir).and_then(|()| sync_dir(parent)).map_err(not_moved)?;
        // The data is safe under either name.
        let kept = match std::fs::rename(&making, &kept).and_then(|()| sync_dir(parent)) {
            Ok(()) => kept,
            Err(error) => {
                tracing::warn!(%error, "the old folder keeps a name that was meant for a moment");
                making
            }
        };
        Ok((rebuilt, kept))
    }
}

/// In one step, so that no crash leaves the place empty; in two where the file system cannot.
fn exchange(new: &Path, old: &Path) -> std::io::Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let aside = new.with_extension("old");
            std::fs::rename(old, &aside)?;
            std::fs::rename(new, old)?;
            std::fs::rename(&aside, new)
        }
        done => Ok(done?),
    }
}

enum ReplayError {
    Read(std::io::Error),
    Entry { index: u64, reason: String },
}

fn replay(
    snapshots: crate::snapshot::SnapshotStore,
    reader: &dyn crate::disk::DiskReader,
    last: Option<LogMark>,
) -> Result<(ClusterState, Option<LogMark>), ReplayError> {
    let machine = Machine::new(snapshots.snapshots, snapshots.newest);
    let newest = || machine.shared.applied.read().last.as_ref().map(crate::types::mark);
    let end = last.map_or(0, |last| last.index + 1);
    let mut next = newest().map_or(0, |mark| mark.index + 1);
    while next < end {
        let chunk = next..end.min(next + CHUNK_ENTRIES);
        for record in reader.read(chunk, CHUNK_BYTES).map_err(ReplayError::Read)? {
            let index = record.mark.index;
            let entry = entry_of(&record).map_err(|err| ReplayError::Entry { index, reason: chain(&err) })?;
            machine.apply_entry(entry).map_err(|err| ReplayError::Entry { index, reason: chain(&err) })?;
            next = index + 1;
        }
    }
    let state = machine.shared.applied.read().state.clone();
    Ok((state, newest()))
}
