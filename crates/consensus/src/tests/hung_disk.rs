//! A disk that does not fail but does not answer either: the others take over, nothing acknowledged is lost, and the
//! coordinator follows when its disk is back.

use std::collections::BTreeSet;

use outlast_control::state::decode_batch;
use outlast_types::CoordinatorId;

use crate::consensus::Consensus;
use crate::disk::DiskReader as _;
use crate::disk::sim::{SimContents, SimFaults};
use crate::error::ProposeError;
use crate::testing::{PATIENCE, TestConfig, TestNode, barrier, eventually, leader_of};

struct Cluster {
    nodes: Vec<TestNode>,
    disks: Vec<Option<SimContents>>,
    acked: BTreeSet<String>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn of(voters: u64) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let disks: Vec<_> = (1..=voters).map(|id| Some(SimContents::create("test", id))).collect();
        let nodes = TestConfig::new(dir.path()).cluster_on(&disks).await;
        Self { nodes, disks, acked: BTreeSet::new(), _dir: dir }
    }

    fn disk(&self, id: CoordinatorId) -> &SimContents {
        self.disks[id.0 as usize - 1].as_ref().expect("simulated")
    }

    fn hang(&self, id: CoordinatorId, sync_hangs: bool) {
        self.disk(id).set_faults(SimFaults { sync_hangs, ..SimFaults::default() });
    }

    /// Proposes to whoever leads until it is acknowledged; the index.
    async fn acknowledge(&mut self, request: &str) -> u64 {
        let began = tokio::time::Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "no acknowledgement for {request}");
            let leader = leader_of(&self.nodes).await.consensus.clone();
            if let Ok(applied) = leader.propose(barrier(request)).await {
                self.acked.insert(request.to_owned());
                return applied.index;
            }
        }
    }

    /// Somebody else than `old` leads.
    async fn successor(&self, old: CoordinatorId) -> CoordinatorId {
        let led = || {
            let leads = |node: &&TestNode| node.consensus.leadership().borrow().is_self;
            self.nodes.iter().find(leads).map(|node| node.consensus.id()).filter(|id| *id != old)
        };
        eventually("another one leads", || led().is_some()).await;
        led().expect("just seen")
    }

    fn requests(&self, id: CoordinatorId) -> BTreeSet<String> {
        let records = self.disk(id).read(0..u64::MAX, usize::MAX).expect("the log reads");
        let batches = records.iter().filter(|record| record.payload[0] == 1);
        let envelopes = batches.flat_map(|record| decode_batch(&record.payload[1..]).expect("a batch"));
        envelopes.filter_map(|envelope| envelope.request).map(|request| request.to_string()).collect()
    }

    /// Everybody follows one leader and has everything that was acknowledged.
    async fn all_is_well(mut self) {
        let index = self.acknowledge("last").await;
        for node in &self.nodes {
            node.consensus.wait_applied(index, PATIENCE).await.expect("applied");
            assert!(self.requests(node.consensus.id()).is_superset(&self.acked));
        }
        for node in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
    }
}

/// A failing test must not wait for ever for a writer whose disk hangs.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.disks.iter().flatten().for_each(|disk| disk.set_faults(SimFaults::default()));
    }
}

fn consensus_of(cluster: &Cluster, id: CoordinatorId) -> Consensus {
    let node = cluster.nodes.iter().find(|node| node.consensus.id() == id);
    node.expect("a member").consensus.clone()
}

async fn follows_when_its_disk_is_back(cluster: Cluster, old: CoordinatorId) {
    let gone = consensus_of(&cluster, old);
    eventually("it says what is wrong", || gone.status().disk_hangs).await;
    eventually("it does not call itself leader", || !gone.leadership().borrow().is_self).await;
    let refused = gone.propose(barrier("r")).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");

    cluster.hang(old, false);
    let follows = || gone.leadership().borrow().leader.as_ref().is_some_and(|leader| leader.id != old);
    eventually("it follows", follows).await;
    eventually("its disk is well", || !gone.status().disk_hangs).await;
    cluster.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_leader_whose_disk_hangs_is_replaced_and_follows_when_it_answers_again() {
    let mut cluster = Cluster::of(3).await;
    for i in 0..5 {
        cluster.acknowledge(&format!("a{i}")).await;
    }
    let old = leader_of(&cluster.nodes).await.consensus.id();
    cluster.hang(old, true);
    // Nobody proposes anything: only the watchdog can find out.
    let new = cluster.successor(old).await;
    assert_ne!(new, old);
    cluster.acknowledge("b").await;
    follows_when_its_disk_is_back(cluster, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writing_leader_whose_disk_hangs_is_replaced_and_what_it_acknowledged_survives() {
    let mut cluster = Cluster::of(3).await;
    for i in 0..5 {
        cluster.acknowledge(&format!("a{i}")).await;
    }
    let old = leader_of(&cluster.nodes).await.consensus.clone();
    cluster.hang(old.id(), true);
    let in_flight = tokio::spawn({
        let old = old.clone();
        async move { old.propose(barrier("in-flight")).await }
    });
    cluster.successor(old.id()).await;
    cluster.acknowledge("b").await;
    follows_when_its_disk_is_back(cluster, old.id()).await;
    let outcome = in_flight.await.expect("no panic");
    assert!(outcome.is_err(), "nobody but the hung disk had it: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_voter_whose_disk_hangs_stays_leader_and_says_so() {
    let cluster = Cluster::of(1).await;
    let sole = cluster.nodes[0].consensus.clone();
    cluster.hang(sole.id(), true);
    eventually("it is noticed", || sole.status().disk_hangs).await;
    assert!(sole.leadership().borrow().is_self, "nobody could take over");
    cluster.hang(sole.id(), false);
    eventually("its disk is well", || !sole.status().disk_hangs).await;
    cluster.all_is_well().await;
}
