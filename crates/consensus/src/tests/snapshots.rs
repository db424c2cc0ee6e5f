//! Snapshots beside the log: what may be purged when, a full disk, and transfers that break.

use std::pin::pin;
use std::sync::Arc;

use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _};
use openraft::{EntryPayload, RaftSnapshotBuilder as _};
use outlast_proto::raft::v1::install_snapshot_request::Part;
use outlast_proto::raft::v1::raft_service_client::RaftServiceClient;
use outlast_proto::raft::v1::{self as pb};
use outlast_types::ClusterId;
use tokio::sync::watch;

use crate::disk::check::check_log;
use crate::disk::sim::SimContents;
use crate::disk::{LogMark, MetaKey, RaftDisk};
use crate::fatal::FatalHook;
use crate::hwm::HighWater;
use crate::log::{LogStore, LogWriter};
use crate::machine::Machine;
use crate::snapshot::SnapshotStore;
use crate::testing::{TestConfig, eventually};
use crate::types::{Batch, Entry, Vote, log_id};

fn at(index: u64) -> LogMark {
    LogMark { term: 1, index }
}

fn entry(index: u64) -> Entry {
    Entry { log_id: log_id(at(index)), payload: EntryPayload::Normal(Batch(vec![1; 10].into())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_48_nothing_is_purged_before_the_snapshot_that_covers_it_is_durable() {
    let dir = tempfile::tempdir().expect("temp dir");
    let contents = SimContents::create("test", 1);
    let disk: Box<dyn RaftDisk> = Box::new(contents.open());
    let reader = disk.reader();
    let recovered = check_log(&*reader, true).expect("a good log");
    let high = HighWater::create(&dir.path().join("hwm")).expect("a new file");
    let writer = Arc::new(LogWriter::spawn(disk, high, FatalHook::new(|_| {})).expect("a thread"));
    let covered = watch::Sender::new(Some(0));
    let mut log = LogStore::new(&recovered, Arc::clone(&reader), writer, covered.subscribe());
    log.save_vote(&Vote::new_committed(1, 1)).await.expect("voted");
    log.blocking_append((0..3).map(entry)).await.expect("appended");
    {
        // A snapshot up to 9 is being installed.
        let mut other = log.clone();
        let mut purging = pin!(other.purge(log_id(at(9))));
        assert!(futures::poll!(&mut purging).is_pending());
        log.save_vote(&Vote::new_committed(2, 1)).await.expect("a barrier");
        assert_eq!(reader.meta(MetaKey::Purged).expect("read"), None, "a crash now must find the old log");
        covered.send_replace(Some(10));
        purging.await.expect("purged");
    }
    log.save_vote(&Vote::new_committed(3, 1)).await.expect("a barrier");
    assert!(reader.meta(MetaKey::Purged).expect("read").is_some());
    covered.send_replace(None);
    log.purge(log_id(at(20))).await.expect_err("the install failed, and with it the core must end");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_snapshot_the_one_before_stays() {
    let dir = tempfile::tempdir().expect("temp dir");
    let cluster_id = ClusterId::new("test").expect("valid");
    let store = SnapshotStore::open(dir.path().to_owned(), cluster_id, None).expect("io").expect("empty");
    let mut machine = Machine::new(store.snapshots, None);
    let build = async |machine: &mut Machine, index: u64| {
        machine.shared.applied.write().last = Some(log_id(at(index)));
        machine.get_snapshot_builder().await.build_snapshot().await
    };
    build(&mut machine, 10).await.expect("written");
    std::os::unix::fs::symlink("/dev/full", dir.path().join("snap-1-20.tmp")).expect("link");
    let kept = build(&mut machine, 20).await.expect("the one before");
    assert_eq!(kept.meta.last_log_id, Some(log_id(at(10))));
    assert_eq!(*machine.snapshots.covered().borrow(), Some(11), "nothing more may be purged");
    assert!(!dir.path().join("snap-1-20.tmp").is_symlink(), "what was begun is gone");
    let written = build(&mut machine, 20).await.expect("there is room again");
    assert_eq!(written.meta.last_log_id, Some(log_id(at(20))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_leaves_no_file_behind() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    let mut client = RaftServiceClient::connect(format!("http://{}", node.address)).await.expect("connects");
    let head = pb::SnapshotHead {
        route: Some(pb::Route { cluster_id: "test".to_owned(), from: 2, to: 1 }),
        vote: Some(pb::Ballot { term: 999, voted_for: Some(2), committed: true }),
        last_log: None,
        size_bytes: 100,
    };
    for bytes in [50, 100] {
        let part = |part| pb::InstallSnapshotRequest { part: Some(part) };
        let parts = [part(Part::Head(head.clone())), part(Part::Chunk(vec![7; bytes]))];
        let status = client.install_snapshot(tokio_stream::iter(parts)).await.expect_err("no snapshot");
        assert_eq!(status.code(), tonic::Code::DataLoss, "{status}");
    }
    let left = || std::fs::read_dir(config.dir(1).join("snapshots")).expect("dir").count();
    eventually("an empty folder", || left() == 0).await;
    node.stop().await;
}
