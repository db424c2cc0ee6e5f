//! `exclusive` jobs never run twice at one time (invariant 23), whatever happens to the agent.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use super::harness::{Outlast, is_root, wait_for};

/// Each worker writes its attempt and the time, every few milliseconds, to a file of its own.
fn writer(folder: &Path) -> serde_json::Value {
    let line = format!(
        "while :; do echo $OUTLAST_ATTEMPT $(date +%s%N) >> {}/$$.trace; sleep 0.02; done",
        folder.display()
    );
    json!({"name": "writer", "script": line, "exclusive": true, "resources": {"cpus": 0.5}, "recovery": {"stop_grace": "1s"}})
}

/// (attempt, first, last) of every trace.
fn intervals(folder: &Path) -> Vec<(String, u128, u128)> {
    let traces = std::fs::read_dir(folder).expect("readable").flatten().map(|entry| entry.path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        let mut lines = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(a, t)| Some((a, t.parse().ok()?)));
        let (attempt, first) = lines.next()?;
        let last = lines.next_back().map_or(first, |(_, last)| last);
        Some((attempt.to_owned(), first, last))
    };
    traces.filter_map(read).collect()
}

#[test]
fn exclusive_workers_of_two_attempts_never_overlap_while_an_agent_is_frozen() {
    if !is_root() {
        println!("skipped: an exclusive job needs cgroups, and these need root");
        return;
    }
    let mut outlast = Outlast::start(1, 2);
    let traces = outlast.cluster.folder().join("traces");
    std::fs::create_dir(&traces).expect("the folder can be made");
    let job = outlast.submit(&writer(&traces));
    let before = outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);
    wait_for("a first trace", || (!intervals(&traces).is_empty()).then_some(()));

    let frozen = before.node_of(0);
    outlast.cluster.agent_mut(&frozen).expect("the node exists").signal(Signal::STOP);
    outlast.wait_job(&job, "the next attempt", |job| job.number() > before.number() && job.is_running());
    wait_for("a second trace", || (intervals(&traces).len() >= 2).then_some(()));
    outlast.cluster.agent_mut(&frozen).expect("the node exists").signal(Signal::CONT);
    std::thread::sleep(std::time::Duration::from_secs(2));
    outlast.ok(&["job", "cancel", &job, "--yes"]);
    outlast.wait_job(&job, "the cancel", |job| job.state() == "cancelled");

    let mut runs = intervals(&traces);
    runs.sort_by_key(|(_, first, _)| *first);
    for pair in runs.windows(2) {
        assert!(pair[0].2 < pair[1].1, "two attempts ran at one time: {pair:?}");
    }
    outlast.assert_nothing_left();
}
