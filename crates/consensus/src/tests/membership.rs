//! Members come, are promoted, and go; a change that a crash interrupted is finished.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use outlast_types::CoordinatorId;

use crate::disk::sim::{SimContents, SimFaults};
use crate::error::MembershipError;
use crate::testing::{TestConfig, barrier, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_as_a_learner_promoted_and_removed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let nodes = config.cluster(3).await;
    let leader = &nodes[0].consensus;
    let joined = config.join(4, None).await.expect("joining");
    let id = CoordinatorId(4);
    assert_eq!(leader.promote(id).await, Err(MembershipError::NotMember { id }));
    leader.add_learner(id, &joined.address.to_string()).await.expect("caught up");
    leader.add_learner(id, &joined.address.to_string()).await.expect("asked again it only waits");
    let err = leader.add_learner(id, "127.0.0.1:1").await.expect_err("another address");
    assert!(matches!(err, MembershipError::AlreadyMember { .. }), "{err}");
    let member = leader.members().into_iter().find(|member| member.id == id).expect("a member");
    assert!(
        !member.voter && member.matched.is_some() && member.lag.is_some_and(|lag| lag <= 64),
        "{member:?}"
    );
    leader.promote(id).await.expect("promoted");
    assert_eq!(leader.members().iter().filter(|member| member.voter).count(), 4);
    leader.remove(id).await.expect("removed");
    leader.remove(id).await.expect("gone already");
    assert_eq!(leader.members().len(), 3);
    assert!(!leader.finish_joint().await.expect("nothing to do"));
    let err = nodes[1].consensus.remove(CoordinatorId(3)).await.expect_err("not the leader");
    assert!(matches!(err, MembershipError::NotLeader { .. }), "{err}");
    joined.stop().await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_stays() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = TestConfig::new(dir.path()).found(None).await.expect("founding");
    let id = CoordinatorId(1);
    assert_eq!(node.consensus.remove(id).await, Err(MembershipError::LastVoter { id }));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_47_an_interrupted_change_of_voters_is_finished() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = TestConfig::new(dir.path());
    let disks: Vec<_> = (1..=3).map(|id| Some(SimContents::create("test", id))).collect();
    let nodes = config.cluster_on(&disks).await;
    let leader = nodes[0].consensus.clone();
    // Slow enough that the first of the two entries is seen before it commits.
    let slow = SimFaults { sync_latency: Duration::from_millis(100), ..SimFaults::default() };
    disks.iter().flatten().for_each(|disk| disk.set_faults(slow.clone()));
    let raft = leader.inner.raft.clone();
    let change = tokio::spawn(async move {
        raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([3])), false).await
    });
    eventually("the joint configuration", || leader.is_joint()).await;
    change.abort();
    leader.propose(barrier("r")).await.expect("a joint cluster goes on");
    assert!(leader.is_joint());
    assert!(leader.finish_joint().await.expect("finished"));
    eventually("one configuration", || !leader.is_joint()).await;
    let voters: Vec<_> =
        leader.members().iter().filter(|member| member.voter).map(|member| member.id.0).collect();
    assert_eq!(voters, [1, 2]);
    for node in nodes {
        node.stop().await;
    }
}
