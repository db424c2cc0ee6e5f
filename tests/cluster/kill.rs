//! What happens when things are killed with `kill -9`.

use outlast_local::find_processes;
use serde_json::json;

use super::harness::{Outlast, digest, digits, shell, undisturbed_digest, wait_for};

#[test]
fn kill_of_a_node_moves_its_rank_and_the_weights_stay_identical() {
    let mut outlast = Outlast::start(3, 3);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 40, &result));
    let before =
        outlast.wait_job(&job, "a sealed checkpoint", |job| job.is_running() && !job.sealed().is_empty());

    let victim = before.node_of(1);
    outlast.cluster.agent_mut(&victim).expect("the node exists").kill_tree();
    let moved = outlast
        .wait_job(&job, "the next attempt to run", |job| job.number() > before.number() && job.is_running());
    assert_ne!(moved.node_of(1), victim, "the rank must leave the dead node");
    assert_eq!(moved.node_of(0), before.node_of(0), "the healthy rank stays where it was");
    assert_eq!(moved.newest()["rung"], "rank_moved");
    assert!(moved.newest()["restore_step"].as_u64() > Some(0), "it goes on from a sealed checkpoint");

    let done = outlast.wait_success(&job);
    done.assert_attempts_in_order();
    let ended = done
        .attempts()
        .iter()
        .find(|a| a["number"] == before.number())
        .expect("the killed attempt is on record");
    assert_eq!(ended["cause"], "node_lost");
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_the_leader_loses_no_acknowledged_submission_and_no_job() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 20, &result));
    outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);

    let mut acknowledged: Vec<String> =
        (0..5).map(|i| outlast.submit(&shell(&format!("before{i}"), "true"))).collect();
    let leader = outlast.leader();
    outlast.cluster.coordinators[leader].kill();
    acknowledged.extend((0..5).map(|i| outlast.submit(&shell(&format!("after{i}"), "true"))));
    outlast.cluster.coordinators[leader].start().expect("it starts again");

    for id in &acknowledged {
        outlast.wait_success(id);
    }
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "a leader's death costs no attempt: {}", done.0);
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_a_worker_restarts_it_in_place_from_its_checkpoint() {
    let outlast = Outlast::start(1, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 1, 40, &result));
    let before =
        outlast.wait_job(&job, "a sealed checkpoint", |job| job.is_running() && !job.sealed().is_empty());

    let workers: Vec<_> =
        outlast.cluster.processes().into_iter().filter(|p| p.command.ends_with("example digits")).collect();
    assert_eq!(workers.len(), 1, "one worker runs: {workers:?}");
    kill(workers[0].pid);
    let after =
        outlast.wait_job(&job, "the restart", |job| job.number() > before.number() && job.is_running());
    assert_eq!(after.node_of(0), before.node_of(0), "rung 1: the same node");
    assert_eq!(after.newest()["rung"], "in_place");
    let ended = outlast.wait_success(&job);
    let first = &ended.attempts()[0];
    assert_eq!(first["cause"], "signal");
    assert_eq!(first["assignments"][0]["exit"], "signal 9");
    assert_eq!(digest(&result), undisturbed_digest(1, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_an_agent_alone_costs_nothing_its_successor_adopts_the_worker() {
    let mut outlast = Outlast::start(1, 1);
    let line = "i=0; while [ $i -lt 120 ]; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let job = outlast.submit(&shell("counter", line));
    outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);
    let agent = &mut outlast.cluster.agents[0];
    agent.kill();
    std::thread::sleep(std::time::Duration::from_millis(700));
    agent.start().expect("the agent starts again");

    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "the worker was adopted, not restarted: {}", done.0);
    let logs = outlast.ok(&["job", "logs", &job]);
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains("line ")).collect();
    let wanted: Vec<String> = (1..=120).map(|i| format!("line {i}")).collect();
    assert_eq!(lines.len(), wanted.len(), "no line lost, none twice:\n{logs}");
    assert!(lines.iter().zip(&wanted).all(|(line, wanted)| line.ends_with(wanted.as_str())), "{logs}");
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_a_keeper_alone_ends_its_worker_and_the_job_goes_on() {
    let outlast = Outlast::start(1, 1);
    let job = outlast.submit(&shell("sleeper", "[ -e done ] || sleep 2; exec sleep 6"));
    let before = outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);
    let keeper =
        outlast.cluster.processes().into_iter().find(|p| p.command.contains(" keeper ")).expect("a keeper");
    let below = find_processes(outlast.cluster.folder()).into_iter().filter(|p| p.parent == keeper.pid);
    let worker = below.map(|p| p.pid).next().expect("the keeper has a worker");
    kill(keeper.pid);
    wait_for("the worker to die with its keeper", || (!is_alive(worker)).then_some(()));
    let after = outlast.wait_job(&job, "the restart", |job| job.number() > before.number());
    assert_eq!(after.attempts()[0]["cause"], "keeper_lost");
    outlast.wait_success(&job);
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_everything_at_once_loses_nothing_that_was_acknowledged() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 40, &result));
    let before =
        outlast.wait_job(&job, "a sealed checkpoint", |job| job.is_running() && !job.sealed().is_empty());
    for daemon in outlast.cluster.agents.iter_mut().chain(&mut outlast.cluster.coordinators) {
        daemon.kill_tree();
    }
    for daemon in outlast.cluster.coordinators.iter_mut().chain(&mut outlast.cluster.agents) {
        daemon.start().expect("it starts again");
    }
    let after =
        outlast.wait_job(&job, "the next attempt", |job| job.number() > before.number() && job.is_running());
    assert!(
        after.newest()["restore_step"].as_u64() > Some(0),
        "step zero is never chosen while a seal exists: {}",
        after.0
    );
    outlast.wait_success(&job).assert_attempts_in_order();
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn kill_of_a_node_and_the_leader_at_the_same_moment_is_recovered_from() {
    let mut outlast = Outlast::start(3, 3);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&digits("digits", 2, 40, &result));
    let before =
        outlast.wait_job(&job, "a sealed checkpoint", |job| job.is_running() && !job.sealed().is_empty());
    let leader = outlast.leader();
    let victim = before.node_of(0);
    outlast.cluster.agent_mut(&victim).expect("the node exists").kill_tree();
    outlast.cluster.coordinators[leader].kill();
    let after =
        outlast.wait_job(&job, "the next attempt", |job| job.number() > before.number() && job.is_running());
    assert_ne!(after.node_of(0), victim);
    outlast.wait_success(&job).assert_attempts_in_order();
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn kill_by_the_program_itself_fails_the_job_after_its_budget_with_the_evidence() {
    let outlast = Outlast::start(1, 1);
    let mut spec = shell("crasher", "echo the last words; exit 7");
    spec["recovery"] = json!({"max_user_failures": 1});
    let job = outlast.submit(&spec);
    let failed = outlast.wait_job(&job, "the job to fail", |job| job.state() == "failed");
    assert_eq!(failed.attempts().len(), 2, "one failure is forgiven, the second is not");
    assert_eq!(failed.newest()["assignments"][0]["exit"], "exit code 7");
    let explain = outlast.ok(&["job", "explain", &job]);
    assert!(explain.contains("exit code 7"), "{explain}");
    let shown = failed.newest()["assignments"][0]["last_lines"].to_string();
    assert!(shown.contains("the last words"), "{shown}");
    let waited = outlast.run(&["job", "wait", &job]);
    assert_eq!(waited.status.code(), Some(1), "`wait` on a failed job answers 1");
    outlast.assert_nothing_left();
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
