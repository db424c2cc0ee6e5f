//! Raft among coordinators: the only user of openraft and sled.
//!
//! [`Consensus`] is a cheap handle to one coordinator's part in it: propose commands, read the applied state, confirm
//! leadership by a quorum round, watch events, change the members. Everything else is inside: the log with its disk
//! ([`disk`]), snapshots, the network, batching, and the way out when something cannot be trusted any more.
//!
//! What is *not* here: the barrier. A new or restarted leader has to commit `Command::Barrier` before it serves reads,
//! renews leases or plans; the coordinator's leader loop proposes it when [`Leadership::is_self`] becomes true (or the
//! term changes) and derives its incarnation from the answer.
//!
//! Invariants 1 to 12 are kept here.

mod backup;
mod ballot;
mod batcher;
mod clock;
mod config;
mod consensus;
pub mod disk;
mod error;
mod examine;
mod fatal;
mod folder;
mod founding;
mod frames;
mod hwm;
mod leadership;
mod log;
mod machine;
mod members;
mod net;
mod open;
mod rebuild;
#[cfg(feature = "simulated")]
pub mod simulated;
mod snapshot;
mod status;
mod survivor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tick;
mod types;
mod verify;
mod watchdog;

#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupBytes, BackupError, BackupHead, read_backup};
pub use ballot::Ballot;
pub use batcher::{Applied, COMMAND_BYTES_MAX};
pub use config::{ConsensusConfig, Limits};
pub use consensus::Consensus;
pub use error::{MembershipError, NotAppliedInTime, OpenError, ProposeError, QuorumError};
pub use examine::{Examination, Finding, examine_folder};
pub use fatal::FatalHook;
pub use folder::{DiskRoom, FolderError, FormerMember, former_member};
pub use leadership::{Leader, Leadership};
pub use machine::AppliedEntry;
pub use members::Member;
pub use net::{MESSAGE_BYTES_MAX, RaftHandler};
pub use outlast_proto::raft::v1::raft_service_server::RaftServiceServer;
pub use rebuild::{NewCluster, RebuildError, Rebuilt, restore_folder, state_folder};
pub use snapshot::SnapshotError;
pub use status::RaftStatus;
pub use survivor::Survivor;
pub use verify::{FolderReport, quarantine_unopenable, verify_folder};
