//! The real program, two ranks, each with an agent of its own: killed in the middle, started again from what was saved.

#[path = "../../../crates/worker/tests/fake_agent/mod.rs"]
mod fake_agent;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use fake_agent::{FakeAgent, eventually};
use outlast_proto::worker::v1::signal::Kind;

const EPOCHS: &str = "4";

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn agents() -> [FakeAgent; 2] {
    [0, 1].map(|rank| {
        let agent = FakeAgent::start();
        agent.script.identity.lock().expect("no panic").rank = rank;
        *agent.script.seal_all.lock().expect("no panic") = true;
        agent
    })
}

/// Starts both ranks; with `agents` under supervision.
fn start(attempt: &str, result: &Path, step_ms: u32, agents: Option<&[FakeAgent; 2]>) -> [Child; 2] {
    let port = free_port();
    [0, 1].map(|rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_digits"));
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("OUTLAST_ATTEMPT", attempt)
            .env("DIGITS_EPOCHS", EPOCHS)
            .env("DIGITS_STEP_MS", step_ms.to_string())
            .env("DIGITS_RESULT", result)
            .env_remove("OUTLAST_SOCKET")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(agents) = agents {
            command.env("OUTLAST_SOCKET", &agents[rank].socket);
        }
        command.spawn().expect("the program starts")
    })
}

fn ended(mut child: Child) -> ExitStatus {
    let mut status = None;
    eventually("the rank ends", || {
        status = child.try_wait().expect("our child");
        status.is_some()
    });
    status.expect("just seen")
}

fn digest(result: &Path) -> String {
    let text = std::fs::read_to_string(result).expect("rank 0 wrote it");
    text.lines().find(|line| line.contains("\"digest\"")).expect("it has one").to_owned()
}

fn saved_steps(agent: &FakeAgent) -> Vec<u64> {
    agent.script.saves.lock().expect("no panic").iter().map(|save| save.step).collect()
}

fn want_checkpoint(agent: &FakeAgent) {
    *agent.script.due.lock().expect("no panic") = true;
}

#[test]
fn a_killed_rank_ends_the_gang_and_a_restart_comes_out_the_same() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (undisturbed, survivor) = (dir.path().join("undisturbed"), dir.path().join("survivor"));
    for child in start("a", &undisturbed, 0, None) {
        assert!(ended(child).success());
    }

    let agents = agents();
    let [zero, mut one] = start("j1/0@1.3", &survivor, 10, Some(&agents));
    eventually("both ranks run", || agents.iter().all(|agent| agent.script.steps().len() > 5));
    // Only one rank's agent asks, and both ranks save, at the same step.
    want_checkpoint(&agents[1]);
    eventually("both ranks saved", || agents.iter().all(|agent| !saved_steps(agent).is_empty()));
    one.kill().expect("our child");
    assert!(!ended(one).success());
    assert_eq!(ended(zero).code(), Some(11), "rank 0 ends because it lost rank 1");

    let step = saved_steps(&agents[0])[0];
    assert_eq!(saved_steps(&agents[1])[0], step);
    for agent in &agents {
        let mut identity = agent.script.identity.lock().expect("no panic");
        identity.attempt = "j1/0@1.4".into();
        identity.restore_dir = agent.script.kept(step).to_str().expect("UTF-8").into();
        identity.restore_step = step;
        agent.script.reports.lock().expect("no panic").clear();
    }
    for child in start("j1/0@1.4", &survivor, 0, Some(&agents)) {
        assert!(ended(child).success());
    }
    assert_eq!(digest(&survivor), digest(&undisturbed));
    for agent in &agents {
        assert!(agent.script.steps().first().is_some_and(|&first| first > step), "it went on, not from zero");
        assert_eq!((saved_steps(agent).last(), agent.script.steps().last()), (Some(&180), Some(&180)));
    }
    let left = std::fs::read_dir(agents[0].root().join("checkpoints")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing is written beside the training");
}

#[test]
fn a_stopped_gang_saves_first_and_is_no_success() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let agents = agents();
    let children = start("j1/0@1.3", &dir.path().join("result"), 20, Some(&agents));
    eventually("rank 0 listens", || agents[0].script.signal(Kind::Stop));
    for child in children {
        assert_eq!(ended(child).code(), Some(13));
    }
    assert_eq!(saved_steps(&agents[0]), saved_steps(&agents[1]));
    assert_eq!(saved_steps(&agents[0]).len(), 1);
    assert!(!dir.path().join("result").exists());
}

#[test]
fn a_fenced_gang_ends_without_a_result() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let agents = agents();
    let [zero, one] = start("j1/0@1.3", &dir.path().join("result"), 10, Some(&agents));
    eventually("it runs", || !agents[0].script.steps().is_empty());
    *agents[0].script.fenced.lock().expect("no panic") = Some("attempt j1/0@1.4 is current".into());
    assert_eq!(ended(zero).code(), Some(10));
    assert_eq!(ended(one).code(), Some(11));
    assert!(!dir.path().join("result").exists());
}

#[test]
fn training_outlives_its_agent() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let result = dir.path().join("result");
    let mut agents = agents();
    let children = start("j1/0@1.3", &result, 5, Some(&agents));
    eventually("it runs", || agents[0].script.steps().len() > 3);
    agents[0].go_away();
    let seen = agents[1].script.steps().len();
    eventually("it goes on", || agents[1].script.steps().len() > seen + 10);
    agents[0].come_back();
    for child in children {
        assert!(ended(child).success());
    }
    assert_eq!(agents[0].script.steps().last(), Some(&180));
    assert_eq!(saved_steps(&agents[0]), saved_steps(&agents[1]));
}
