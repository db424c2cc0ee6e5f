//! openraft's own storage suite, on both disks.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use outlast_types::ClusterId;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::disk::RaftDisk;
use crate::disk::check::check_log;
use crate::disk::sim::SimContents;
use crate::disk::sled::SledDisk;
use crate::fatal::FatalHook;
use crate::hwm::HighWater;
use crate::log::{LogStore, LogWriter};
use crate::machine::Machine;
use crate::snapshot::{Covered, SnapshotStore};
use crate::types::{StorageError, TypeConfig};

enum Builder {
    Sled,
    Sim,
}

/// As if there were a snapshot of everything.
pub(super) fn all_covered() -> watch::Receiver<Covered> {
    watch::Sender::new(Some(u64::MAX)).subscribe()
}

pub(super) fn log_store(disk: Box<dyn RaftDisk>, dir: &TempDir) -> (LogStore, Arc<LogWriter>) {
    let reader = disk.reader();
    let recovered = check_log(&*reader, true).expect("a good log");
    let high = HighWater::create(&dir.path().join("hwm")).expect("a new file");
    let writer = Arc::new(
        LogWriter::spawn(disk, high, FatalHook::new(|reason| panic!("{reason}"))).expect("a thread"),
    );
    (LogStore::new(&recovered, reader, Arc::clone(&writer), all_covered()), writer)
}

impl StoreBuilder<TypeConfig, LogStore, Machine, (Arc<LogWriter>, TempDir)> for Builder {
    async fn build(&self) -> Result<((Arc<LogWriter>, TempDir), LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk: Box<dyn RaftDisk> = match self {
            Self::Sled => Box::new(SledDisk::create(&dir.path().join("raft"), "test", 1).expect("a new log")),
            Self::Sim => Box::new(SimContents::create("test", 1).open()),
        };
        let (log, writer) = log_store(disk, &dir);
        let cluster_id = ClusterId::new("test").expect("valid");
        let snapshots = SnapshotStore::open(dir.path().join("snapshots"), cluster_id, None)
            .expect("io")
            .expect("no damage");
        Ok(((writer, dir), log, Machine::new(snapshots.snapshots, None)))
    }
}

#[test]
fn the_log_on_sled_keeps_openrafts_contract() {
    Suite::test_all(Builder::Sled).expect("the suite passes");
}

#[test]
fn the_log_on_the_simulated_disk_keeps_openrafts_contract() {
    Suite::test_all(Builder::Sim).expect("the suite passes");
}
