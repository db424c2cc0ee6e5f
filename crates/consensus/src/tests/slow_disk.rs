//! Followers whose disk takes longer than a Raft heartbeat: the cluster has to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outlast_control::state::encode_batch;

use crate::disk::sim::{SimContents, SimFaults};
use crate::testing::{TestConfig, barrier, leader_of};
use crate::types::Batch;

#[tokio::test(flavor = "multi_thread")]
async fn entries_reach_followers_whose_syncs_take_three_heartbeats_and_are_not_sent_for_ever() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    assert!(config.timers.raft_heartbeat_ms == 100, "the lan profile");
    let disks: Vec<_> = (1..=3).map(|id| Some(SimContents::create("test", id))).collect();
    let nodes = config.cluster_on(&disks).await;
    let leader = leader_of(&nodes).await.consensus.clone();
    let term = leader.status().term;
    let followers: Vec<_> = (1..=3).filter(|id| *id != leader.id().0).collect();
    let slow = SimFaults { sync_latency: Duration::from_millis(300), ..SimFaults::default() };
    let disk = |id: u64| disks[id as usize - 1].as_ref().expect("simulated");
    followers.iter().for_each(|id| disk(*id).set_faults(slow.clone()));
    let before = disk(followers[0]).syncs();
    for i in 0..5 {
        leader.propose(barrier(&format!("r{i}"))).await.expect("a slow quorum is a quorum");
    }
    let syncs = disk(followers[0]).syncs() - before;
    assert_eq!(leader.status().term, term, "nobody had a reason to elect");
    assert!(syncs <= 10, "5 entries cost {syncs} syncs: they were sent again and again");
    leader.quorum_round().await.expect("leadership can be confirmed");
    for node in nodes {
        node.stop().await;
    }
}

/// The batcher keeps at most two entries in flight, which hides the trap. Here the log grows all the time, so that each
/// retry carries something new to sync: without the answer of the request that is in flight, none would ever come in
/// time.
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_acknowledged_although_every_retry_brings_new_ones() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let disks: Vec<_> = (1..=3).map(|id| Some(SimContents::create("test", id))).collect();
    let nodes = config.cluster_on(&disks).await;
    let leader = leader_of(&nodes).await.consensus.clone();
    let slow = SimFaults { sync_latency: Duration::from_millis(300), ..SimFaults::default() };
    let followers = (1..=3).filter(|id| *id != leader.id().0);
    followers.for_each(|id| disks[id as usize - 1].as_ref().expect("simulated").set_faults(slow.clone()));
    let acked = Arc::new(AtomicUsize::new(0));
    let mut written = 0;
    while acked.load(Ordering::SeqCst) == 0 {
        // Beyond 256 entries a request grows no more, and even repeated ones come through.
        assert!(written < 200, "nothing is acknowledged while the log grows");
        written += 1;
        let (raft, acked) = (leader.inner.raft.clone(), Arc::clone(&acked));
        tokio::spawn(async move {
            if raft.client_write(Batch(encode_batch(&[barrier("r")]).into())).await.is_ok() {
                acked.fetch_add(1, Ordering::SeqCst);
            }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes.into_iter().for_each(crate::testing::TestNode::kill);
}
