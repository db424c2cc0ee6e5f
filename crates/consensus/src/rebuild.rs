//! A coordinator's folder made from a state: the first and only member of a cluster that goes on from another's data.
//!
//! ```text
//! state as of N ─► snapshot at N, its only voter the new member ─► log: vote, purged N, entry N+1 (OpenGeneration)
//!                                                                    ─► high water ─► identity (last: the commit point)
//! ```
//! The entry is in the log, committed, as any other: it is the audit record, and every start applies it again until a
//! snapshot covers it. A crash before the identity leaves a folder that belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use openraft::{BasicNode, EntryPayload};
use outlast_control::state::{
    ClusterState, Command, Envelope, FORMAT_VERSION, Refusal, Response, encode_batch, encode_state,
};
use outlast_types::{Actor, ClusterId, CoordinatorId};

use crate::backup::Backup;
use crate::ballot::Ballot;
use crate::clock::wall_now;
use crate::disk::check::{CheckError, encode};
use crate::disk::sled::SledDisk;
use crate::disk::{Damage, DiskOp, LogMark, MetaKey, RaftDisk as _};
use crate::folder::{Folder, FolderError, Identity, replace_file};
use crate::hwm::{HighMark, HighWater};
use crate::snapshot::SnapshotStore;
use crate::types::{Batch, Entry, StoredMembership, log_id, record_of};

/// Of a state that no log led to.
const FIRST_TERM: u64 = 1;

/// What a cluster that is made from old data is called, and where its first member will be.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Never used before.
    pub cluster_id: ClusterId,
    /// `host:port` that others reach the member at.
    pub address: String,
    /// For the audit record.
    pub reason: String,
    /// Further files of the folder, by name; they are durable before it counts.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// The member that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    pub cluster_id: ClusterId,
    pub coordinator: CoordinatorId,
    pub generation: u64,
    /// The entry that opened the generation.
    pub index: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("the data folder cannot be used")]
    Folder(#[from] FolderError),
    #[error(
        "the folder {path} is not empty, {found:?} is in it: give the new coordinator a folder of its own"
    )]
    NotEmpty { path: PathBuf, found: String },
    #[error("the folder {path} holds no coordinator")]
    NoCoordinator { path: PathBuf },
    #[error("the data in {path} is damaged: take another survivor's, or a backup")]
    Damaged {
        path: PathBuf,
        #[source]
        damage: Damage,
    },
    #[error("the entry at {index} cannot be read: {reason}")]
    Entry { index: u64, reason: String },
    #[error("the data holds no cluster: its coordinator had not copied anything yet")]
    NoCluster,
    #[error("the state does not take the new generation: {0}")]
    Refused(Refusal),
    #[error("the disk could not be read or written")]
    Disk(#[source] io::Error),
    #[error(
        "the new folder is complete in {new}, but cannot take the place of {old}: move {old} away and {new} there"
    )]
    NotMoved {
        old: PathBuf,
        new: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the first member of a new cluster from a backup, in a folder that is empty or not there.
///
/// # Errors
/// See [`RebuildError`]. What was begun is left where it is: it has no identity, so nobody takes it for a coordinator.
pub fn restore_folder(dir: &Path, backup: Backup, new: NewCluster) -> Result<Rebuilt, RebuildError> {
    rebuild(&empty_folder(dir)?, backup.state, backup.head.last, new)
}

/// Makes the first member of a new cluster from a state that nobody's log has an entry of, in a folder that is empty or
/// not there.
///
/// # Errors
/// As for [`restore_folder`].
pub fn state_folder(dir: &Path, state: ClusterState, new: NewCluster) -> Result<Rebuilt, RebuildError> {
    if state.config.is_none() {
        return Err(RebuildError::NoCluster);
    }
    let last = LogMark { term: FIRST_TERM, index: state.applied };
    rebuild(&empty_folder(dir)?, state, last, new)
}

fn empty_folder(dir: &Path) -> Result<Folder, RebuildError> {
    let folder = Folder::create(dir)?;
    for entry in std::fs::read_dir(dir).map_err(RebuildError::Disk)? {
        let name = entry.map_err(RebuildError::Disk)?.file_name();
        if name != "lock" {
            let found = name.to_string_lossy().into_owned();
            return Err(RebuildError::NotEmpty { path: dir.to_owned(), found });
        }
    }
    Ok(folder)
}

/// Fills a folder that has nothing of a coordinator yet; `last` is the newest entry in the state.
pub(crate) fn rebuild(
    folder: &Folder,
    mut state: ClusterState,
    last: LogMark,
    new: NewCluster,
) -> Result<Rebuilt, RebuildError> {
    let before = encode_state(&state);
    let NewCluster { cluster_id, address, reason, files } = new;
    let opening = opening(&cluster_id, &address, reason);
    let at = LogMark { term: last.term, index: last.index + 1 };
    let coordinator = match state.apply(at.index, &opening).0 {
        Response::CoordinatorAdded(coordinator) => coordinator,
        Response::Refused(refusal) => return Err(RebuildError::Refused(refusal)),
        other => unreachable!("a generation is opened or refused, not answered with {other:?}"),
    };
    write_snapshot(folder, &cluster_id, coordinator, &address, last, &before).map_err(RebuildError::Disk)?;
    // A vote precedes every entry of its term; the member's first election begins with the next one.
    let vote = Ballot { term: last.term, voted_for: Some(coordinator.0), committed: false };
    let batch = Batch(encode_batch(&[opening]).into());
    let entry = Entry { log_id: log_id(at), payload: EntryPayload::Normal(batch) };
    write_log(folder, &cluster_id, coordinator, &entry, last, vote)?;
    let mut high = HighWater::create(&folder.high_water()).map_err(RebuildError::Disk)?;
    high.write(HighMark { last: Some(at), vote: Some(vote) }).map_err(RebuildError::Disk)?;
    for (name, bytes) in &files {
        replace_file(&folder.root().join(name), bytes).map_err(RebuildError::Disk)?;
    }
    folder.write_identity(&Identity::new(cluster_id.clone(), coordinator, address))?;
    Ok(Rebuilt { cluster_id, coordinator, generation: state.generation, index: at.index })
}

fn opening(cluster_id: &ClusterId, address: &str, reason: String) -> Envelope {
    Envelope {
        request: None,
        actor: Actor::System,
        source: None,
        cause: Some(reason.clone()),
        at: wall_now(),
        command: Command::OpenGeneration {
            cluster_id: cluster_id.clone(),
            address: address.to_owned(),
            feature_level: FORMAT_VERSION,
            reason,
        },
    }
}

fn write_snapshot(
    folder: &Folder,
    cluster_id: &ClusterId,
    coordinator: CoordinatorId,
    address: &str,
    last: LogMark,
    body: &[u8],
) -> io::Result<()> {
    let store =
        SnapshotStore::open(folder.snapshots(), cluster_id.clone(), None)?.map_err(io::Error::other)?;
    let voters = vec![BTreeSet::from([coordinator.0])];
    let nodes = BTreeMap::from([(coordinator.0, BasicNode::new(address))]);
    let membership = StoredMembership::new(Some(log_id(last)), openraft::Membership::new(voters, nodes));
    let head = store.snapshots.head(Some(log_id(last)), membership);
    store.snapshots.write(&head, body).map(drop)
}

fn write_log(
    folder: &Folder,
    cluster_id: &ClusterId,
    coordinator: CoordinatorId,
    entry: &Entry,
    purged: LogMark,
    vote: Ballot,
) -> Result<(), RebuildError> {
    let failed = |err| match err {
        CheckError::Io(source) => RebuildError::Disk(source),
        CheckError::Damage(damage) => RebuildError::Disk(io::Error::other(damage)),
    };
    let mut disk = SledDisk::create(&folder.log(), cluster_id.as_str(), coordinator.0).map_err(failed)?;
    let put = |key, value| DiskOp::Put { key, value };
    let record = record_of(entry);
    let ops = [
        put(MetaKey::Vote, encode(&vote)),
        put(MetaKey::Purged, encode(&purged)),
        put(MetaKey::Committed, encode(&record.mark)),
        DiskOp::Append(vec![record]),
    ];
    disk.stage(&ops).and_then(|()| disk.sync()).map_err(RebuildError::Disk)?;
    disk.reader().close();
    Ok(())
}
