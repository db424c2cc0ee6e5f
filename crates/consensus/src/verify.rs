//! A look at a stopped coordinator's folder by a child process, before the coordinator opens it; and what to do with one
//! that ended its opener.

use std::io;
use std::path::Path;

use outlast_types::{ClusterId, CoordinatorId};

use crate::config::DiskChoice;
use crate::disk::check::{CheckError, check_log};
use crate::disk::{Damage, Recovered};
use crate::error::OpenError;
use crate::folder::{DiskRoom, Folder};
use crate::hwm::HighWater;
use crate::open::{disk_error, open_disk};
use crate::snapshot::SnapshotStore;

/// What a look at a stopped coordinator's folder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderReport {
    pub cluster_id: ClusterId,
    pub coordinator: CoordinatorId,
    pub log: Recovered,
    /// The index that the newest good snapshot covers.
    pub snapshot: Option<u64>,
}

/// Checks a stopped coordinator's folder, all of the log if `deep`, and changes nothing but a damaged snapshot's name.
///
/// # Errors
/// [`OpenError::Folder`] when it is in use or holds no coordinator; damage as [`OpenError::Disk`] with its reason.
pub fn verify_folder(dir: &Path, deep: bool) -> Result<FolderReport, OpenError> {
    let none = || disk_error(io::Error::new(io::ErrorKind::NotFound, "the folder holds no coordinator"));
    let folder = Folder::open(dir)?.ok_or_else(none)?;
    let identity = folder.identity()?.ok_or_else(none)?;
    let checked = || -> Result<FolderReport, CheckError> {
        let disk = open_disk(&DiskChoice::Sled, &folder.log(), &identity)?;
        let log = check_log(&*disk.reader(), deep)?;
        HighWater::open(&folder.high_water(), &log)?;
        let snapshots = SnapshotStore::open(folder.snapshots(), identity.cluster_id.clone(), log.purged);
        let newest = snapshots.map_err(CheckError::Io)??.newest;
        let snapshot = newest.and_then(|(head, _)| head.last_log).map(|id| id.index);
        disk.reader().close();
        Ok(FolderReport {
            cluster_id: identity.cluster_id.clone(),
            coordinator: identity.coordinator,
            log,
            snapshot,
        })
    };
    checked().map_err(|err| match err {
        CheckError::Io(source) => disk_error(source),
        CheckError::Damage(damage) => disk_error(io::Error::new(io::ErrorKind::InvalidData, damage)),
    })
}

/// With less room than this sled cannot open a good log either.
const ROOM_TO_OPEN: u64 = 16 << 20;

/// Whether a log that cannot be opened may be a good one.
pub(crate) fn is_too_full_to_open(dir: &Path) -> bool {
    DiskRoom::of(dir).is_ok_and(|room| room.free_bytes < ROOM_TO_OPEN)
}

pub(crate) fn too_full(damage: &Damage) -> String {
    format!("no space left on the disk: make room and start again ({damage})")
}

/// Moves a coordinator away whose log ended the process that tried it (sled panics on many kinds of damage, and a
/// release build aborts then); `how` says how it ended. Returns what whoever started it should be told.
pub fn quarantine_unopenable(dir: &Path, how: &str) -> OpenError {
    let moved = || -> Result<OpenError, OpenError> {
        let none = || disk_error(io::Error::new(io::ErrorKind::NotFound, "the folder holds no coordinator"));
        let folder = Folder::open(dir)?.ok_or_else(none)?;
        let identity = folder.identity()?.ok_or_else(none)?;
        let damage = Damage::Unopenable { reason: format!("opening it {how}") };
        if is_too_full_to_open(dir) {
            return Err(disk_error(io::Error::new(io::ErrorKind::StorageFull, too_full(&damage))));
        }
        let moved_to = folder.quarantine()?;
        Ok(OpenError::Quarantined { coordinator: identity.coordinator, moved_to, damage })
    };
    moved().unwrap_or_else(|err| err)
}
