//! Backups, restored folders, survivors: a cluster that goes on from another's data.

use std::collections::BTreeMap;
use std::path::Path;

use outlast_types::{ClusterId, CoordinatorId};

use crate::backup::{BackupError, read_backup};
use crate::consensus::Consensus;
use crate::examine::examine_folder;
use crate::folder::FolderError;
use crate::rebuild::{NewCluster, RebuildError, restore_folder};
use crate::survivor::Survivor;
use crate::testing::{TestConfig, TestNode, barrier, eventually};

fn new_cluster(name: &str, address: &str) -> NewCluster {
    NewCluster {
        cluster_id: ClusterId::new(name).expect("valid"),
        address: address.to_owned(),
        reason: "test".to_owned(),
        files: BTreeMap::from([("beside".to_owned(), b"told".to_vec())]),
    }
}

fn write_backup(consensus: &Consensus, path: &Path) -> u64 {
    let backup = consensus.backup().expect("a cluster");
    let bytes: Vec<u8> = backup.pieces().flatten().collect();
    std::fs::write(path, bytes).expect("written");
    backup.head.last.index
}

/// Opens what was rebuilt, and waits until it leads and has applied the opening of its generation.
async fn leads(config: &TestConfig, id: u64, address: std::net::SocketAddr, generation: u64) -> TestNode {
    let node = config.reopen(id, address, None).await.expect("opens").expect("a coordinator");
    let leadership = node.consensus.leadership();
    eventually("its election", || leadership.borrow().is_self).await;
    eventually("the generation", || node.consensus.read(|state| state.generation == generation)).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_goes_on_as_a_new_cluster_and_survives_its_restarts() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    for i in 0..5 {
        node.consensus.propose(barrier(&format!("r{i}"))).await.expect("applied");
    }
    let path = dir.path().join("backup");
    let index = write_backup(&node.consensus, &path);
    node.consensus.propose(barrier("of-the-lost-time")).await.expect("applied");
    let address = node.address;
    node.stop().await;
    let backup = read_backup(&path).expect("whole");
    let target = config.dir(9);
    let rebuilt = restore_folder(&target, backup.clone(), new_cluster("second", &address.to_string()));
    let rebuilt = rebuilt.expect("restored");
    assert_eq!((rebuilt.index, rebuilt.generation), (index + 1, 2));
    assert_eq!(rebuilt.coordinator, CoordinatorId(index + 1));
    assert_eq!(std::fs::read(target.join("beside")).expect("there"), b"told");
    assert!(examine_folder(&target, true).expect("read").is_good());
    let again = restore_folder(&target, backup, new_cluster("third", "a:1")).expect_err("it is taken");
    assert!(matches!(again, RebuildError::NotEmpty { .. }), "{again}");
    for round in 0..3 {
        let node = leads(&config, 9, address, 2).await;
        assert_eq!(node.consensus.cluster_id().as_str(), "second");
        let names = node.consensus.read(|state| state.config.clone()).expect("a cluster");
        assert_eq!(names.predecessors, std::slice::from_ref(&config.cluster_id));
        node.consensus.propose(barrier(&format!("after-{round}"))).await.expect("applied");
        if round == 1 {
            node.consensus.snapshot_now().await;
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_of_three_becomes_a_cluster_that_others_join() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let nodes = config.cluster(3).await;
    for i in 0..5 {
        nodes[0].consensus.propose(barrier(&format!("r{i}"))).await.expect("applied");
    }
    let index = *nodes[0].consensus.applied().borrow();
    let third = nodes[2].consensus.applied();
    eventually("the third to know all", || *third.borrow() >= index).await;
    drop(third);
    let held = Survivor::open(&config.dir(3)).expect_err("it runs");
    assert!(matches!(held, RebuildError::Folder(FolderError::Locked { .. })), "{held}");
    let address = nodes[2].address;
    for node in nodes {
        node.stop().await;
    }
    let survivor = Survivor::open(&config.dir(3)).expect("read");
    assert_eq!(survivor.coordinator, CoordinatorId(3));
    let index = survivor.index();
    let (rebuilt, kept) =
        survivor.become_cluster(new_cluster("second", &address.to_string())).expect("recovered");
    assert_eq!(rebuilt.index, index + 1);
    assert!(kept.join("identity").exists() && kept.join("raft/db").exists(), "nothing is deleted");
    assert_eq!(kept.file_name().and_then(|name| name.to_str()), Some("c3.before-second"));
    let node = leads(&config, 3, address, 2).await;
    let requests = node.consensus.read(|state| state.requests.len());
    assert_eq!(requests, 5, "what was acknowledged is there");
    let voters: Vec<_> = node.consensus.members().into_iter().map(|member| member.id).collect();
    assert_eq!(voters, [rebuilt.coordinator], "the others are gone");
    let second = TestConfig { cluster_id: rebuilt.cluster_id.clone(), ..config.clone() };
    let joiner = second.join(99, None).await.expect("joins");
    let (id, joiner_address) = (CoordinatorId(99), joiner.address.to_string());
    node.consensus.add_learner(id, &joiner_address).await.expect("a learner");
    node.consensus.promote(id).await.expect("a voter");
    assert!(joiner.consensus.read(|state| state.generation == 2));
    joiner.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_did_not_come_to_its_end_leaves_a_folder_that_belongs_to_nobody() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    let (path, address) = (dir.path().join("backup"), node.address);
    write_backup(&node.consensus, &path);
    node.stop().await;
    let mut new = new_cluster("second", "a:1");
    // A file that cannot be written: the identity, which comes after it, must not be there either.
    new.files = BTreeMap::from([("no/such/folder".to_owned(), Vec::new())]);
    let err = restore_folder(&config.dir(9), read_backup(&path).expect("whole"), new).expect_err("no room");
    assert!(matches!(err, RebuildError::Disk(_)), "{err}");
    assert!(config.reopen(9, address, None).await.expect("nobody's").is_none());
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&path, bytes).expect("written");
    assert!(matches!(read_backup(&path), Err(BackupError::Truncated)));
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_11_an_examination_names_the_part_that_is_damaged() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let node = config.found(None).await.expect("founding");
    for i in 0..5 {
        node.consensus.propose(barrier(&format!("r{i}"))).await.expect("applied");
    }
    node.consensus.snapshot_now().await;
    let snapshots = config.dir(1).join("snapshots");
    let newest = || {
        let listed = std::fs::read_dir(&snapshots).ok()?;
        listed.flatten().map(|entry| entry.path()).find(|path| path.extension().is_none())
    };
    eventually("a snapshot", || newest().is_some()).await;
    node.stop().await;
    let found = examine_folder(&config.dir(1), true).expect("read");
    assert!(found.is_good() && found.coordinator == CoordinatorId(1), "{found:?}");
    let path = newest().expect("a snapshot");
    let mut bytes = std::fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let found = examine_folder(&config.dir(1), false).expect("read");
    let bad: Vec<_> = found.findings.iter().filter(|finding| !finding.is_good).collect();
    assert!(bad.len() == 1 && bad[0].part.starts_with("snapshot"), "{found:?}");
    assert!(path.exists(), "a look changes nothing");
    {
        let db = sled::open(config.dir(1).join("raft")).expect("opens");
        let tree = db.open_tree("raft").expect("tree");
        let key = crate::disk::frame::record_key(3, 0);
        let mut value = tree.get(key).expect("get").expect("record 3").to_vec();
        *value.last_mut().expect("bytes") ^= 1;
        tree.insert(key, value).expect("insert");
        db.flush().expect("flush");
    }
    let found = examine_folder(&config.dir(1), true).expect("read");
    let bad: Vec<_> = found.findings.iter().filter(|finding| !finding.is_good).collect();
    assert!(bad.iter().any(|finding| finding.part == "log"), "{found:?}");
    let err = Survivor::open(&config.dir(1)).expect_err("damaged");
    assert!(matches!(err, RebuildError::Damaged { .. }), "{err}");
    assert!(config.dir(1).join("identity").exists(), "a refusal moves nothing");
}
