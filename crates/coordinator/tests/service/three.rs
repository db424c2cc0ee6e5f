//! Three coordinators in this process: joining, and what a follower passes on to the leader.

use std::time::Duration;

use crate::support::{FakeAgent, PATIENCE, config, control, http, job_when, registration, start, submit};
use outlast_coordinator::{CoordinatorConfig, RunningCoordinator};
use outlast_proto::control::v1 as control;
use tempfile::TempDir;

async fn cluster() -> Vec<(TempDir, RunningCoordinator)> {
    let mut cluster: Vec<(TempDir, RunningCoordinator)> = Vec::new();
    for _ in 0..3 {
        let folder = tempfile::tempdir().expect("a folder");
        let join: Vec<String> = cluster.iter().map(|(_, running)| running.address.to_string()).collect();
        let config = CoordinatorConfig { init: join.is_empty(), join, ..config(folder.path()) };
        let running = start(config).await;
        cluster.push((folder, running));
    }
    cluster
}

async fn status(address: &str) -> control::ClusterStatusResponse {
    control(address)
        .await
        .cluster_status(control::ClusterStatusRequest {})
        .await
        .expect("a status")
        .into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_answers_everything_and_the_cluster_outlives_its_leader() {
    let mut cluster = cluster().await;
    let follower =
        cluster.iter().position(|(_, running)| !running.is_leader()).expect("three have two followers");
    let address = cluster[follower].1.address.to_string();
    let seen = status(&address).await;
    assert_eq!(seen.coordinators.len(), 3, "{seen:?}");
    assert!(seen.coordinators.iter().all(|known| known.reachable && known.role != "learner"), "{seen:?}");

    let mut agent = FakeAgent::connect(&address, registration("n1", 1)).await;
    let before = agent.grant().await;
    let mut client = control(&address).await;
    let job = submit(&mut client, "through-a-follower").await;
    agent.worker(|worker| worker.may_start).await;
    job_when(&mut client, &job, |job| job.groups[0].attempts.len() == 1).await;

    let leader = cluster.iter().position(|(_, running)| running.is_leader()).expect("one leads");
    let (_folder, leading) = cluster.remove(leader);
    leading.stop();
    leading.wait().await;
    let after = tokio::time::timeout(PATIENCE, async {
        loop {
            let grant = agent.grant().await;
            if grant.incarnation > before.incarnation {
                return grant;
            }
        }
    });
    after.await.expect("a new leader grants leases through the same follower");
    submit(&mut client, "after-the-leader").await;
    let seen = status(&address).await;
    assert!(seen.warnings.iter().any(|warning| warning.contains("does not answer")), "{seen:?}");
    assert_eq!(seen.nodes_lost, 0, "a leader's death costs no lease");
    assert_eq!(http(&address, "GET /readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_declares_nobody_lost_afterwards() {
    let cluster = cluster().await;
    let (leaders, followers): (Vec<_>, Vec<_>) =
        cluster.into_iter().partition(|(_, running)| running.is_leader());
    let address = leaders[0].1.address.to_string();
    let mut agent = FakeAgent::connect(&address, registration("n1", 1)).await;
    agent.grant().await;

    let mut away = Vec::new();
    for (folder, running) in followers {
        running.stop();
        let listen = running.address;
        running.wait().await;
        away.push((folder, listen));
    }
    // Longer than a lease: the state that is tested needs the time to pass.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let mut back = Vec::new();
    for (folder, listen) in away {
        let running = start(CoordinatorConfig { listen, ..config(folder.path()) }).await;
        back.push((folder, running));
    }

    let mut client = control(&address).await;
    submit(&mut client, "after-the-quorum").await;
    // Heartbeats go out four times a second: one of after the time without a quorum.
    while agent.grant().await.ack_seq < 28 {}
    let seen = status(&address).await;
    assert_eq!((seen.nodes_lost, seen.nodes_ready), (0, 1), "{seen:?}");
}
