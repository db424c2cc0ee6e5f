//! Three coordinators on loopback: failover, catching up, and what a stranger is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{decode_batch, encode_state};
use outlast_proto::raft::v1::{self as pb, raft_service_client::RaftServiceClient};
use outlast_types::CoordinatorId;

use crate::consensus::Consensus;
use crate::disk::RaftDisk as _;
use crate::disk::sled::SledDisk;
use crate::error::{ProposeError, QuorumError};
use crate::testing::{PATIENCE, TestConfig, TestNode, barrier, eventually, leader_of};

/// Proposes until it is acknowledged, as a client with a request id would.
async fn acknowledged(nodes: &[TestNode], request: &str) -> u64 {
    let began = tokio::time::Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "no acknowledgement for {request}");
        if let Ok(applied) = leader_of(nodes).await.consensus.propose(barrier(request)).await {
            return applied.index;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The request ids in a stopped node's log.
fn requests(config: &TestConfig, id: u64) -> BTreeSet<String> {
    let disk = SledDisk::open(&config.dir(id).join("raft")).expect("the log opens");
    let records = disk.reader().read(0..u64::MAX, usize::MAX).expect("the log reads");
    let batches = records.iter().filter(|record| record.payload[0] == 1);
    let envelopes = batches.flat_map(|record| decode_batch(&record.payload[1..]).expect("a batch"));
    envelopes.filter_map(|envelope| envelope.request).map(|request| request.to_string()).collect()
}

async fn all_applied(nodes: &[TestNode], index: u64) {
    for node in nodes {
        node.consensus.wait_applied(index, PATIENCE).await.expect("applied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_14_acknowledged_commands_survive_the_leader_and_a_kill_of_everybody() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let mut nodes = config.cluster(3).await;
    let mut acked = BTreeSet::new();
    for i in 0..20 {
        acknowledged(&nodes, &format!("a{i}")).await;
        acked.insert(format!("a{i}"));
    }
    let led = leader_of(&nodes).await.consensus.id();
    let at = nodes.iter().position(|node| node.consensus.id() == led).expect("a member");
    let killed = nodes.remove(at);
    let address = killed.address;
    killed.kill();
    for i in 0..20 {
        acknowledged(&nodes, &format!("b{i}")).await;
        acked.insert(format!("b{i}"));
    }
    assert_ne!(leader_of(&nodes).await.consensus.id(), led);
    nodes.push(config.reopen(led.0, address, None).await.expect("opens").expect("a member"));
    let index = acknowledged(&nodes, "c").await;
    acked.insert("c".to_owned());
    all_applied(&nodes, index).await;
    let addresses: Vec<_> = nodes.iter().map(|node| (node.consensus.id().0, node.address)).collect();
    nodes.into_iter().for_each(TestNode::kill);
    for (id, _) in &addresses {
        let missing: Vec<_> = acked.difference(&requests(&config, *id)).cloned().collect();
        assert!(missing.is_empty(), "c{id} lacks {missing:?}");
    }
    let mut nodes = Vec::new();
    for (id, address) in addresses {
        nodes.push(config.reopen(id, address, None).await.expect("opens").expect("a member"));
    }
    let index = acknowledged(&nodes, "d").await;
    all_applied(&nodes, index).await;
    // Invariant 4: the same index, the same state.
    let states: BTreeSet<_> = nodes.iter().map(|node| node.consensus.read(encode_state)).collect();
    assert_eq!(states.len(), 1);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_refuses_proposals_and_names_the_leader_and_a_lonely_leader_refuses_them_too() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let mut nodes = config.cluster(3).await;
    let led = leader_of(&nodes).await.consensus.id();
    let at = nodes.iter().position(|node| node.consensus.id() == led).expect("a member");
    let leader = nodes.remove(at);
    leader.consensus.quorum_round().await.expect("confirmed by the others");
    let follower = &nodes[0].consensus;
    let knows = || follower.leadership().borrow().leader.as_ref().is_some_and(|leader| leader.id == led);
    eventually("the follower knows the leader", knows).await;
    let err = follower.propose(barrier("r")).await.expect_err("a follower");
    let ProposeError::NotLeader { leader: Some(named) } = err else { panic!("{err:?}") };
    assert_eq!((named.id, named.address), (led, leader.address.to_string()));
    assert!(matches!(follower.quorum_round().await, Err(QuorumError::NotLeader { .. })));

    nodes.into_iter().for_each(TestNode::kill);
    let stale = || leader.consensus.inner.quorum.age_ms() > config.timers.election_max_ms;
    eventually("its quorum is stale", stale).await;
    assert_eq!(leader.consensus.propose(barrier("r")).await, Err(ProposeError::NotLeader { leader: None }));
    leader.consensus.quorum_round().await.expect_err("nobody confirms");
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_48_a_learner_behind_a_purged_log_catches_up_by_snapshot() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut config = TestConfig::new(dir.path());
    config.limits.snapshot_entries = 40;
    config.limits.entries_kept = 5;
    let mut nodes = vec![config.found(None).await.expect("founding")];
    for i in 0..150 {
        acknowledged(&nodes, &format!("r{i}")).await;
    }
    eventually("the log is purged", || nodes[0].consensus.status().purged.is_some_and(|purged| purged > 20))
        .await;
    let joined = config.join(2, None).await.expect("joining");
    nodes[0].consensus.add_learner(CoordinatorId(2), &joined.address.to_string()).await.expect("caught up");
    let index = acknowledged(&nodes, "last").await;
    nodes.push(joined);
    all_applied(&nodes, index).await;
    assert!(nodes[1].consensus.status().snapshot.is_some(), "it got a snapshot");
    assert_eq!(nodes[0].consensus.read(encode_state), nodes[1].consensus.read(encode_state));
    // Both start again from their snapshots.
    let addresses: Vec<_> = nodes.iter().map(|node| (node.consensus.id().0, node.address)).collect();
    for node in nodes {
        node.stop().await;
    }
    let mut nodes = Vec::new();
    for (id, address) in addresses {
        nodes.push(config.reopen(id, address, None).await.expect("opens").expect("a member"));
    }
    let index = acknowledged(&nodes, "again").await;
    all_applied(&nodes, index).await;
    // The newest snapshot damaged, and the log no longer leads to an older one: refused with the reason.
    let node = nodes.remove(0);
    let address = node.address;
    node.stop().await;
    let newest = std::fs::read_dir(config.dir(1).join("snapshots")).expect("dir").flatten();
    for file in newest {
        let mut bytes = std::fs::read(file.path()).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file.path(), bytes).expect("write");
    }
    let err = config.reopen(1, address, None).await.map(|node| node.is_some()).expect_err("refused");
    assert!(crate::fatal::chain(&err).contains("no snapshot can be used"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_another_cluster_or_for_another_id_are_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = TestConfig::new(dir.path()).found(None).await.expect("founding");
    let mut client = RaftServiceClient::connect(format!("http://{}", node.address)).await.expect("connects");
    let ballot = pb::Ballot { term: 999, voted_for: Some(2), committed: false };
    let call = |cluster_id: &str, to| pb::VoteRequest {
        route: Some(pb::Route { cluster_id: cluster_id.to_owned(), from: 2, to }),
        vote: Some(ballot),
        last_log: None,
    };
    for (cluster_id, to, words) in
        [("other", 1, "belongs to cluster test"), ("test", 5, "this coordinator is c1")]
    {
        let status = client.vote(call(cluster_id, to)).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains(words), "{status}");
    }
    assert!(node.consensus.status().term < 999, "a stranger's term changes nothing");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_share_entries_and_all_get_their_own_answers() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = TestConfig::new(dir.path()).found(None).await.expect("founding");
    let consensus: Arc<Consensus> = Arc::new(node.consensus.clone());
    let proposals = (0..500).map(|i| {
        let consensus = Arc::clone(&consensus);
        tokio::spawn(async move { consensus.propose(barrier(&format!("r{i}"))).await })
    });
    let proposals: Vec<_> = proposals.collect();
    let mut indices = BTreeSet::new();
    for proposal in proposals {
        indices.insert(proposal.await.expect("no panic").expect("applied").index);
    }
    assert!(indices.len() < 250, "500 commands took {} entries", indices.len());
    drop(consensus);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_in_flight_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut config = TestConfig::new(dir.path());
    config.limits.commands_in_flight = 4;
    let contents = crate::disk::sim::SimContents::create("test", 1);
    let node = config.found(Some(&contents)).await.expect("founding");
    // The founder's own command is applied before its place is free; those before this one were answered.
    node.consensus.propose(barrier("r")).await.expect("applied");
    // Nothing is answered before all have asked.
    contents.set_faults(crate::disk::sim::SimFaults { sync_hangs: true, ..Default::default() });
    let mut proposals = tokio::task::JoinSet::new();
    for i in 0..20 {
        let consensus = node.consensus.clone();
        proposals.spawn(async move { consensus.propose(barrier(&format!("r{i}"))).await });
    }
    for _ in 0..16 {
        match proposals.join_next().await.expect("twenty were made").expect("no panic") {
            Err(ProposeError::Busy { retry_after_ms }) if retry_after_ms > 0 => {}
            other => panic!("there is room for four: {other:?}"),
        }
    }
    contents.set_faults(crate::disk::sim::SimFaults::default());
    for proposal in proposals.join_all().await {
        proposal.expect("it had a place");
    }
    node.stop().await;
}
