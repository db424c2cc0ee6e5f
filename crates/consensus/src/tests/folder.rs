//! Folders: who may use them, and what is refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outlast_control::state::{Command, Envelope};
use outlast_types::{ClusterId, CoordinatorId, JobId, Profile};

use crate::consensus::Consensus;
use crate::disk::sim::{SimContents, SimFaults};
use crate::disk::sled::SledDisk;
use crate::disk::{Damage, DiskOp, RaftDisk};
use crate::error::{OpenError, ProposeError};
use crate::fatal::{FatalHook, chain};
use crate::folder::{DiskRoom, FolderError};
use crate::testing::{TestConfig, barrier, eventually};
use crate::verify::{quarantine_unopenable, verify_folder};

/// A founded coordinator with some entries, stopped cleanly; returns its address.
async fn stopped(config: &TestConfig) -> std::net::SocketAddr {
    let node = config.found(None).await.expect("founding");
    for i in 0..5 {
        node.consensus.propose(barrier(&format!("r{i}"))).await.expect("applied");
    }
    let address = node.address;
    node.stop().await;
    address
}

async fn refused(config: &TestConfig, address: std::net::SocketAddr) -> (Damage, std::path::PathBuf) {
    match config.reopen(1, address, None).await.map(|node| node.is_some()) {
        Err(OpenError::Quarantined { damage, moved_to, coordinator: CoordinatorId(1) }) => (damage, moved_to),
        other => panic!("must be quarantined, got {other:?}"),
    }
}

fn with_log(dir: &Path, change: impl FnOnce(&mut SledDisk)) {
    let mut disk = SledDisk::open(&dir.join("raft")).expect("the log opens");
    change(&mut disk);
    disk.sync().expect("sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_keeps_everything_and_an_empty_folder_holds_nobody() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let unused = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    assert!(config.reopen(1, unused, None).await.expect("no folder").is_none());
    let address = stopped(&config).await;
    let report = verify_folder(&config.dir(1), true).expect("a good folder");
    assert_eq!(report.coordinator, CoordinatorId(1));
    let node = config.reopen(1, address, None).await.expect("opens").expect("a coordinator");
    let applied = node.consensus.applied();
    eventually("all entries applied", || *applied.borrow() >= report.log.last.expect("entries").index).await;
    assert!(node.consensus.read(|state| state.config.is_some()));
    assert!(node.consensus.status().probe.p50_us > 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_never_share_a_folder_and_the_message_names_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    let err = Consensus::open(config.node(1, node.address, None)).await.expect_err("locked");
    assert!(matches!(err, OpenError::Folder(FolderError::Locked { .. })), "{err:?}");
    assert!(chain(&err).contains(&config.dir(1).display().to_string()), "{}", chain(&err));
    let err = verify_folder(&config.dir(1), false).expect_err("locked");
    assert!(matches!(err, OpenError::Folder(FolderError::Locked { .. })), "{err:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let address = stopped(&config).await;
    let node = || config.node(1, address, None);
    let (own, other) = (config.cluster_id.clone(), ClusterId::new("other").expect("valid"));
    let err = Consensus::join(node(), other.clone(), CoordinatorId(1)).await.expect_err("another cluster");
    assert!(matches!(err, OpenError::OtherOwner { .. }), "{err}");
    let err = Consensus::join(node(), own, CoordinatorId(7)).await.expect_err("another id");
    assert!(matches!(err, OpenError::OtherOwner { .. }), "{err}");
    let err = Consensus::found(node(), other, Profile::Lan).await.expect_err("already a member");
    assert!(matches!(err, OpenError::AlreadyMember { .. }), "{err}");
    std::fs::write(config.dir(1).join("identity"), "{").expect("write");
    let err = Consensus::open(node()).await.expect_err("damaged identity");
    assert!(matches!(err, OpenError::Folder(FolderError::Identity { .. })), "{err}");
    std::fs::write(config.dir(1).join("identity"), r#"{"format": 9, "future": true}"#).expect("write");
    let err = Consensus::open(node()).await.expect_err("newer format");
    assert!(matches!(err, OpenError::Folder(FolderError::Format { found: 9, .. })), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_10_a_log_that_lost_entries_is_quarantined_and_the_folder_is_empty_then() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let address = stopped(&config).await;
    with_log(&config.dir(1), |disk| {
        let (_, last) = disk.reader().bounds().expect("bounds").expect("entries");
        let zero = crate::disk::check::encode(&crate::disk::LogMark::default());
        let committed = DiskOp::Put { key: crate::disk::MetaKey::Committed, value: zero };
        disk.stage(&[DiskOp::Truncate { from: last }, committed]).expect("stage");
    });
    let (damage, moved_to) = refused(&config, address).await;
    assert!(matches!(damage, Damage::SilentLoss { .. }), "{damage}");
    assert!(moved_to.join("raft/db").exists() && moved_to.join("identity").exists());
    assert!(config.reopen(1, address, None).await.expect("empty").is_none());
    // The founder's command line still says that it shall found: beside the old cluster there must be no new one.
    let err = Consensus::found(config.node(1, address, None), config.cluster_id.clone(), Profile::Lan).await;
    let err = err.expect_err("it was a member");
    assert!(matches!(&err, OpenError::WasMember { lies_in, .. } if *lies_in == moved_to), "{err:?}");
    let joined = Consensus::join(config.node(7, address, None), config.cluster_id.clone(), CoordinatorId(7));
    joined.await.expect("under a new id").shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_whoever_opens_it_is_quarantined_too() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let address = stopped(&config).await;
    let err = quarantine_unopenable(&config.dir(1), "ended with signal 6");
    let OpenError::Quarantined { coordinator: CoordinatorId(1), moved_to, .. } = &err else {
        panic!("{err:?}")
    };
    assert!(moved_to.join("raft/db").exists(), "nothing is deleted");
    assert!(chain(&err).contains("ended with signal 6"), "{}", chain(&err));
    assert!(config.reopen(1, address, None).await.expect("empty").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_12_a_wiped_voter_is_refused_under_its_old_id() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let address = stopped(&config).await;
    std::fs::remove_dir_all(config.dir(1).join("raft")).expect("wipe");
    assert!(matches!(refused(&config, address).await.0, Damage::Missing { .. }));

    let second = TestConfig::new(&dir.path().join("second"));
    let address = stopped(&second).await;
    std::fs::remove_dir_all(second.dir(1).join("raft")).expect("wipe");
    drop(SledDisk::create(&second.dir(1).join("raft"), "test", 1).expect("an empty log in its place"));
    assert!(matches!(refused(&second, address).await.0, Damage::SilentLoss { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_11_a_damaged_record_is_found_when_the_folder_is_opened() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let address = stopped(&config).await;
    {
        let db = sled::open(config.dir(1).join("raft")).expect("opens");
        let tree = db.open_tree("raft").expect("tree");
        let key = crate::disk::frame::record_key(3, 0);
        let mut value = tree.get(key).expect("get").expect("record 3").to_vec();
        *value.last_mut().expect("bytes") ^= 1;
        tree.insert(key, value).expect("insert");
        db.flush().expect("flush");
    }
    let (damage, _) = refused(&config, address).await;
    assert!(matches!(damage, Damage::Bad { .. }), "{damage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_10_a_disk_that_lies_about_its_syncs_is_found_out_at_the_next_start() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let contents = SimContents::create("test", 1);
    let node = config.found(Some(&contents)).await.expect("founding");
    contents.set_faults(SimFaults { lying_sync: true, ..SimFaults::default() });
    node.consensus.propose(barrier("lost")).await.expect("it says so");
    tokio::time::sleep(crate::hwm::AGE_MAX).await;
    node.consensus.propose(barrier("lost-too")).await.expect("it says so");
    let address = node.address;
    node.kill();
    contents.lose_unsynced();
    contents.set_faults(SimFaults::default());
    match config.reopen(1, address, Some(&contents)).await.map(|node| node.is_some()) {
        Err(OpenError::Quarantined { damage: Damage::SilentLoss { .. }, .. }) => {}
        other => panic!("must be refused, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_53_a_disk_error_ends_the_process() {
    for faults in [
        SimFaults { sync_fails_at: Some(1), ..SimFaults::default() },
        SimFaults { capacity_bytes: Some(1), ..SimFaults::default() },
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut config = TestConfig::new(dir.path());
        let died = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&died);
        config.fatal = FatalHook::new(move |_| seen.store(true, Ordering::SeqCst));
        let contents = SimContents::create("test", 1);
        let node = config.found(Some(&contents)).await.expect("founding");
        contents.set_faults(faults);
        let consensus = node.consensus.clone();
        let proposing = tokio::spawn(async move { consensus.propose(barrier("r")).await });
        eventually("the end", || died.load(Ordering::SeqCst)).await;
        assert!(proposing.await.expect("no panic").is_err(), "nothing may be acknowledged");
        node.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_the_disk_and_for_huge_commands_proposals_are_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    let mut huge = barrier("huge");
    huge.cause = Some("x".repeat(2 << 20));
    let err = node.consensus.propose(huge).await.expect_err("too large");
    assert!(matches!(err, ProposeError::TooLarge { .. }), "{err}");
    let cancel = Command::CancelJob { job: JobId(1), reason: None };
    let cancel = || Envelope { command: cancel.clone(), ..barrier("r") };
    *node.consensus.inner.room.write() = DiskRoom { free_bytes: 1, needed_bytes: 2 };
    let err = node.consensus.propose(cancel()).await.expect_err("no room");
    assert_eq!(err, ProposeError::DiskFull { free_bytes: 1, needed_bytes: 2 });
    *node.consensus.inner.room.write() = DiskRoom { free_bytes: 1, needed_bytes: 2 };
    node.consensus.propose(barrier("b")).await.expect("without it nobody renews leases");
    node.stop().await;
}
