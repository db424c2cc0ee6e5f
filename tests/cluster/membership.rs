//! Coordinators that come, go, and come back wrong.

use super::harness::{Outlast, shell, wait_for};

#[test]
fn membership_a_removed_coordinator_is_gone_and_the_rest_goes_on() {
    let mut outlast = Outlast::start(3, 1);
    let leader = outlast.leader();
    let follower = (0..3).find(|i| *i != leader).expect("three coordinators");
    let address = outlast.cluster.coordinators[follower].address.clone();
    let status = outlast.json(&["cluster", "status"]);
    let of_follower = |c: &&serde_json::Value| c["address"] == address.as_str();
    let members = status["coordinators"].as_array().expect("members");
    let id =
        members.iter().find(of_follower).expect("it is a member")["id"].as_str().expect("an id").to_owned();

    outlast.ok(&["cluster", "remove", &id, "--yes"]);
    outlast.cluster.coordinators[follower].kill();
    let status = outlast.json(&["cluster", "status"]);
    let voters = status["coordinators"].as_array().expect("members").iter();
    let voters = voters.filter(|c| c["role"] == "leader" || c["role"] == "follower").count();
    assert_eq!(voters, 2, "{status}");
    let job = outlast.submit(&shell("still-works", "true"));
    outlast.wait_success(&job);
    outlast.assert_nothing_left();
}

#[test]
fn membership_a_wiped_voter_is_not_let_in_under_its_old_id() {
    let mut outlast = Outlast::start(3, 0);
    let leader = outlast.leader();
    let follower = (0..3).find(|i| *i != leader).expect("three coordinators");
    let daemon = &mut outlast.cluster.coordinators[follower];
    daemon.kill();
    // The log is lost, the identity is not: what a restored half-backup looks like.
    let raft = std::fs::read_dir(&daemon.folder).expect("readable").flatten();
    for entry in raft.filter(|entry| entry.path().is_dir()) {
        std::fs::remove_dir_all(entry.path()).expect("removable");
    }
    daemon.start().expect("the process starts");
    let code = wait_for("the refusal", || outlast.cluster.coordinators[follower].exit_code());
    let log = outlast.cluster.coordinators[follower].log_tail(20);
    assert_eq!(code, 78, "{log}");
    assert!(log.contains("join"), "the message must say how to come back: {log}");
    outlast.assert_nothing_left();
}

#[test]
fn membership_everything_restarted_one_after_the_other_keeps_the_cluster_answering() {
    let mut outlast = Outlast::start(3, 1);
    let job = outlast.submit(&shell("steady", "sleep 20"));
    outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);
    for i in 0..3 {
        outlast.cluster.coordinators[i].kill();
        outlast.cluster.coordinators[i].start().expect("it starts again");
        wait_for("all coordinators to vote", || {
            let output = outlast.run(&["cluster", "status", "-o", "json"]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let members = status["coordinators"].as_array()?;
            let all = members.iter().all(|c| c["reachable"] == true) && members.len() == 3;
            (all && status["leader"].as_str().is_some_and(|leader| !leader.is_empty())).then_some(())
        });
    }
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "{}", done.0);
    outlast.assert_nothing_left();
}

#[test]
fn membership_an_upgrade_of_members_that_know_nothing_new_changes_nothing() {
    let outlast = Outlast::start(1, 1);
    let before = outlast.json(&["cluster", "status"]);
    let after = outlast.json(&["cluster", "upgrade"]);
    assert_eq!(before["feature_level"], after["feature_level"], "{after}");
    outlast.assert_nothing_left();
}

#[test]
fn membership_without_a_majority_the_status_says_that_nobody_leads() {
    let mut outlast = Outlast::start(3, 0);
    let leader = outlast.leader();
    for i in (0..3).filter(|i| *i != leader) {
        outlast.cluster.coordinators[i].kill();
    }
    let status = wait_for("a status without a leader", || {
        let output = outlast.run(&["cluster", "status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["leader"] == "").then_some(status)
    });
    assert_ne!(status["last_leader"], "", "{status}");
    let warnings = status["warnings"].as_array().expect("warnings");
    assert!(
        warnings.iter().any(|warning| warning.as_str().is_some_and(|text| text.contains("no leader now"))),
        "{status}"
    );
    assert!(
        status["coordinators"].as_array().is_some_and(|all| all.iter().all(|c| c["role"] != "leader")),
        "{status}"
    );
    outlast.assert_nothing_left();
}
