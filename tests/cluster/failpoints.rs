//! A crash at every named place of a checkpoint's life: the process is started again as a supervisor would, the work goes
//! on, and what is sealed is whole. One cluster and one job for all places of agents and leader, so that each costs seconds.

use std::path::Path;
use std::time::Instant;

use outlast_failpoint::{ALL, Failpoint, VARIABLE};
use outlast_local::{Builder, Daemon, LocalCluster};

use super::harness::{Job, Outlast, exe, wait_for};
use super::saver::{Saver, check_all, checkpoints, sealed_step, stop_file, wait_next_seal};

const KILLED: i32 = 9;

fn cluster(bucket: &Path) -> Outlast {
    let url = format!("file://{}", bucket.display());
    let args = ["--cpus", "4", "--store", &url];
    Outlast::start_with(Builder::new(exe()).coordinators(1).agents(2).agent_args(&args))
}

/// Starts the daemon again so that it crashes at the place, and waits until it has.
fn crash(daemon: &mut Daemon, at: Failpoint) {
    daemon.kill();
    daemon.start_with(&[(VARIABLE, &format!("{}=crash", at.name()))]).expect("it starts");
    if at.name().starts_with("agent.restore.") {
        kill_worker(daemon);
    }
    let signal = wait_for(&format!("a crash at {}", at.name()), || daemon.exit_signal());
    assert_eq!(signal, KILLED, "{}: {}", at.name(), daemon.log_tail(20));
    daemon.start().expect("it starts again");
}

fn of(process: &str) -> impl Iterator<Item = Failpoint> {
    let prefix = format!("{process}.");
    ALL.iter().copied().filter(move |at| at.name().starts_with(&prefix))
}

/// Ends the worker of a node, so that its agent restores it.
fn kill_worker(agent: &Daemon) {
    for worker in agent.descendants().iter().filter(|found| found.command.contains("saver_program")) {
        let pid = rustix::process::Pid::from_raw(worker.pid).expect("a pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn failpoints_of_agent_and_leader_lose_nothing_that_was_sealed() {
    let bucket = tempfile::tempdir().expect("a folder");
    let mut outlast = cluster(bucket.path());
    let folder = outlast.cluster.folder().to_owned();
    let spec = Saver { workers: 2, durability: "stored", ..Saver::new("steady", &folder) };
    let job = outlast.submit(&spec.spec());
    let mut sealed = wait_next_seal(&outlast, &job, 0);
    for at in of("agent").chain(of("leader")) {
        let began = Instant::now();
        let is_leader = at.name().starts_with("leader.");
        let LocalCluster { coordinators, agents, .. } = &mut outlast.cluster;
        crash(if is_leader { &mut coordinators[0] } else { &mut agents[0] }, at);
        let crashed = began.elapsed();
        sealed = wait_next_seal(&outlast, &job, sealed_step(&outlast, &job).max(sealed));
        println!(
            "{:32} {:4.1} s, {:4.1} s, step {sealed}",
            at.name(),
            crashed.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
    // A restore that takes its time finds what it was told to read (nor, below, did any restore fail).
    let agent = &mut outlast.cluster.agents[0];
    agent.kill();
    let slow = format!("{}=pause:3s", Failpoint::AgentRestoreBeforeRead.name());
    agent.start_with(&[(VARIABLE, &slow)]).expect("it starts");
    kill_worker(agent);
    wait_next_seal(&outlast, &job, sealed_step(&outlast, &job).max(sealed));
    std::fs::write(stop_file(&folder, "steady"), "").expect("written");
    outlast.wait_success(&job);
    check_all(&outlast, &job, &spec);
    outlast.assert_nothing_left();
}

/// A kernel may drop what it could not write and confirm the next sync of the same file: what is staged is written anew.
#[test]
fn failpoints_a_sync_that_fails_costs_nothing_that_was_staged() {
    let mut outlast = Outlast::start(1, 1);
    let folder = outlast.cluster.folder().to_owned();
    let agent = &mut outlast.cluster.agents[0];
    agent.kill();
    let failing = format!("{}=error@2", Failpoint::AgentWriteBeforeFsync.name());
    agent.start_with(&[(VARIABLE, &failing)]).expect("it starts");
    let spec = Saver { way: "memory", durability: "local", steps: Some(4), ..Saver::new("steady", &folder) };
    let job = outlast.submit(&spec.spec());
    outlast.wait_success(&job);
    let all = checkpoints(&outlast, &job);
    let sealed = all.iter().filter(|one| one["state"] == "sealed" || one["state"] == "retired");
    assert_eq!((sealed.count(), all.len()), (4, 4), "{all:?}");
    check_all(&outlast, &job, &spec);
    let log = outlast.cluster.agents[0].log_tail(usize::MAX);
    assert!(log.contains("written again to a new file"), "{log}");
    assert!(!log.contains("checkpoint not saved"), "{log}");
    outlast.assert_nothing_left();
}

/// A worker that dies costs its attempt; what it had staged as a whole is sealed all the same (salvage).
#[test]
fn failpoints_of_a_worker_cost_the_step_that_was_not_staged_and_no_other() {
    let outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().to_owned();
    let jobs: Vec<(Failpoint, String, String)> = of("worker")
        .map(|at| {
            let name = at.name().replace(['.', '_'], "-");
            // The third step is staged: odd ones are.
            let failpoint = format!("{}=crash@2", at.name());
            let spec = Saver { steps: Some(6), failpoint: Some(&failpoint), ..Saver::new(&name, &folder) };
            (at, outlast.submit(&spec.spec()), name.clone())
        })
        .collect();
    for (at, job, name) in jobs {
        let done: Job = outlast.wait_success(&job);
        let restored: Vec<_> = done.attempts().iter().map(|one| one["restore_step"].as_u64()).collect();
        let salvaged = if at == Failpoint::WorkerStageAfterMark { 3 } else { 2 };
        assert_eq!(restored.last(), Some(&Some(salvaged)), "{}: {}", at.name(), done.0);
        assert_eq!((done.attempts().len(), sealed_step(&outlast, &job)), (2, 6), "{}: {}", at.name(), done.0);
        check_all(&outlast, &job, &Saver::new(&name, &folder));
    }
    outlast.assert_nothing_left();
}
