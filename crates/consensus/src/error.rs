//! What can go wrong, by operation.

use std::io;
use std::path::PathBuf;

use outlast_types::{ClusterId, CoordinatorId};

use crate::disk::Damage;
use crate::folder::FolderError;
use crate::leadership::Leader;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data folder cannot be used")]
    Folder(#[from] FolderError),
    #[error(
        "the folder {path} belongs to {found}, not to {asked}: give this coordinator a folder of its own"
    )]
    OtherOwner { path: PathBuf, found: String, asked: String },
    #[error(
        "the folder {path} already holds {coordinator} of cluster {cluster_id}: start it, or use an empty folder"
    )]
    AlreadyMember { path: PathBuf, cluster_id: ClusterId, coordinator: CoordinatorId },
    #[error(
        "the folder {path} held {coordinator} of cluster {cluster_id} until its log was damaged (it lies in {lies_in}): a new \
         cluster here would begin empty, beside the old one; join the old one, or take another folder"
    )]
    WasMember { path: PathBuf, cluster_id: ClusterId, coordinator: CoordinatorId, lies_in: PathBuf },
    /// The binary exits with 78.
    #[error(
        "the log of {coordinator} cannot be trusted any more and was moved to {moved_to}: remove {coordinator} from the cluster \
         and let this machine join again; it gets a new id and its data from the others"
    )]
    Quarantined {
        coordinator: CoordinatorId,
        moved_to: PathBuf,
        #[source]
        damage: Damage,
    },
    #[error("the folder {path} holds no coordinator")]
    NoCoordinator { path: PathBuf },
    #[error("the disk could not be read or written")]
    Disk(#[source] io::Error),
    #[error("the timers do not fit each other")]
    Timers(#[from] outlast_types::ProfileError),
    #[error("the Raft core did not start: {reason}")]
    Raft { reason: String },
    #[error("the new cluster has no leader after {waited_ms} ms")]
    NotFounded { waited_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this coordinator is not the leader")]
    NotLeader { leader: Option<Leader> },
    #[error("too much is in flight: try again in {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    #[error(
        "only {free_bytes} bytes are free on the coordinator's disk, {needed_bytes} are needed: make room there"
    )]
    DiskFull { free_bytes: u64, needed_bytes: u64 },
    #[error("the command has {size} bytes, {max} are allowed")]
    TooLarge { size: usize, max: usize },
    /// The deadline passed, or leadership was lost while the command was in flight. A retry with the same request id is
    /// safe.
    #[error("it is not known whether the command took effect: ask again with the same request id")]
    Unknown,
    #[error("this coordinator has stopped")]
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    #[error("this coordinator is not the leader")]
    NotLeader { leader: Option<Leader> },
    #[error("no majority of the coordinators answered within {waited_ms} ms")]
    NoQuorum { waited_ms: u64 },
    #[error("this coordinator has stopped")]
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index {wanted} is not applied yet, only {applied}")]
pub struct NotAppliedInTime {
    pub wanted: u64,
    pub applied: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("this coordinator is not the leader")]
    NotLeader { leader: Option<Leader> },
    #[error("another membership change is in progress: try again when it is done")]
    InProgress,
    #[error("{id} is a member already, at {address}")]
    AlreadyMember { id: CoordinatorId, address: String },
    #[error("{id} was removed, and an id is never used twice: join again to get a new one")]
    IdReused { id: CoordinatorId },
    #[error("{id} is not a member")]
    NotMember { id: CoordinatorId },
    #[error("{id} is the last voter: a cluster needs one")]
    LastVoter { id: CoordinatorId },
    #[error("{id} has not caught up: it is {lag} entries behind")]
    Lagging { id: CoordinatorId, lag: u64 },
    /// The deadline passed: the change may still happen.
    #[error("the change was not confirmed in time, and may still happen: look at the members")]
    Unknown,
    #[error("the change was refused: {reason}")]
    Refused { reason: String },
    #[error("this coordinator has stopped")]
    Stopped,
}
