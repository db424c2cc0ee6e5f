//! Processes that stop for a while and come back believing that nothing happened.

use rustix::process::Signal;

use super::harness::{Job, Outlast, digest, digits, metric, shell, undisturbed_digest, wait_for};

#[test]
fn pause_of_an_agent_beyond_its_lease_moves_the_work_and_its_stale_worker_is_stopped() {
    let mut outlast = Outlast::start(3, 3);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 40, &result));
    let before =
        outlast.wait_job(&job, "a sealed checkpoint", |job| job.is_running() && !job.sealed().is_empty());
    let frozen = before.node_of(1);
    outlast.cluster.agent_mut(&frozen).expect("the node exists").signal(Signal::STOP);
    let after =
        outlast.wait_job(&job, "the next attempt", |job| job.number() > before.number() && job.is_running());
    assert_ne!(after.node_of(1), frozen);

    let agent = outlast.cluster.agent_mut(&frozen).expect("the node exists");
    agent.signal(Signal::CONT);
    let agent = outlast.cluster.agent_mut(&frozen).expect("the node exists");
    wait_for("the stale worker to be stopped", || {
        agent.descendants().iter().all(|p| !p.command.ends_with("example digits")).then_some(())
    });
    wait_for("the node to be ready again", || {
        (outlast.json(&["node", "show", &frozen])["condition"] == "ready").then_some(())
    });
    outlast.wait_success(&job).assert_attempts_in_order();
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn pause_of_an_agent_below_its_lease_costs_nothing() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 20, &result));
    let before = outlast.wait_job(&job, "the job to run", Job::is_running);
    let agent = outlast.cluster.agent_mut(&before.node_of(1)).expect("the node exists");
    for _ in 0..2 {
        agent.signal(Signal::STOP);
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        agent.signal(Signal::CONT);
        std::thread::sleep(std::time::Duration::from_millis(1_000));
    }
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "a healthy node is not evicted (invariant 8): {}", done.0);
    outlast.assert_nothing_left();
}

#[test]
fn pause_of_the_leader_elects_another_and_the_old_one_changes_nothing() {
    let outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 20, &result));
    outlast.wait_job(&job, "the job to run", Job::is_running);
    let old = outlast.leader();
    outlast.cluster.coordinators[old].signal(Signal::STOP);
    let new = wait_for("another leader", || {
        let leader = outlast.leader();
        (leader != old).then_some(leader)
    });
    outlast.cluster.coordinators[old].signal(Signal::CONT);
    assert_ne!(new, old);
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "a leader's pause costs no attempt: {}", done.0);
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

/// The coordinator that the only agent has its session with.
fn serving(outlast: &Outlast, of: &[usize]) -> usize {
    wait_for("the agent's coordinator", || {
        let serves =
            |i: &&usize| metric(&outlast.cluster.coordinators[**i].address, "outlast_sessions") > 0.0;
        of.iter().find(serves).copied()
    })
}

#[test]
fn pause_of_an_agents_own_coordinator_costs_no_lease_heartbeats_are_hedged() {
    let mut outlast = Outlast::start(3, 1);
    let leader = outlast.leader();
    // Not the leader: its pause would be another test.
    let own = wait_for("an agent of a follower", || {
        let own = serving(&outlast, &[0, 1, 2]);
        if own != leader {
            return Some(own);
        }
        outlast.cluster.agents[0].kill();
        outlast.cluster.agents[0].start().expect("it starts again");
        None
    });
    let job = outlast.submit(&shell("sleeper", "exec sleep 1000"));
    outlast.wait_job(&job, "the job to run", Job::is_running);
    let agent = outlast.cluster.agents[0].address.clone();
    let hedged_before = metric(&agent, "outlast_agent_heartbeats_hedged_total");
    let registration = || outlast.json(&["node", "show", "n1"])["registration"].clone();
    let registered = registration();

    outlast.cluster.coordinators[own].signal(Signal::STOP);
    let others: Vec<usize> = (0..3).filter(|i| *i != own).collect();
    // It leaves a coordinator that answers nothing; until another one welcomes it, hedges keep its lease.
    let next = serving(&outlast, &others);
    assert_ne!(next, own);
    assert!(metric(&agent, "outlast_agent_heartbeats_hedged_total") > hedged_before);
    outlast.cluster.coordinators[own].signal(Signal::CONT);

    assert_eq!(registration(), registered, "a node that was lost would have registered anew");
    let events = outlast.ok(&["job", "events", &job]);
    assert!(!events.contains("lost"), "{events}");
    let job = outlast.wait_job(&job, "the job to run", Job::is_running);
    assert_eq!(job.attempts().len(), 1, "{}", job.0);
    outlast.assert_nothing_left();
}
