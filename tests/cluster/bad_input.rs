//! What a person does wrong, and what the message says.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::harness::{DEADLINE, Outlast, exe, is_root, shell, wait_for};

/// Runs a daemon that is expected to refuse to start; one that does not is ended.
fn refused(args: &[&str]) -> (i32, String) {
    let mut daemon = Command::new(exe())
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let started = Instant::now();
    while daemon.try_wait().expect("waitable").is_none() && started.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(50));
    }
    // Nothing happens where it has ended already.
    let _ = daemon.kill();
    let Output { status, stderr, .. } = daemon.wait_with_output().expect("waitable");
    let message = String::from_utf8_lossy(&stderr).into_owned();
    (status.code().expect("it must end by itself"), message)
}

#[test]
fn bad_input_servers_refuse_to_be_open_by_accident() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    for args in [
        vec!["coordinator", "--data-dir", &path, "--init", "--listen", "0.0.0.0:0"],
        vec![
            "agent",
            "--data-dir",
            &path,
            "--name",
            "a",
            "--coordinator",
            "127.0.0.1:1",
            "--listen",
            "0.0.0.0:0",
        ],
    ] {
        let (code, message) = refused(&args);
        assert_ne!(code, 0);
        assert!(message.contains("--insecure"), "{message}");
    }
}

#[test]
fn bad_input_folders_and_ports_of_others_are_refused_with_their_names() {
    let outlast = Outlast::start(1, 1);
    let coordinator = &outlast.cluster.coordinators[0];
    let folder = coordinator.folder.to_string_lossy().into_owned();
    let other = tempfile::tempdir().expect("a folder");
    let other = other.path().to_string_lossy().into_owned();

    let (code, message) = refused(&["coordinator", "--data-dir", &folder, "--listen", "127.0.0.1:0"]);
    assert_ne!(code, 0);
    assert!(message.contains("uses the folder") && message.contains(&folder), "{message}");

    let (code, message) =
        refused(&["coordinator", "--data-dir", &other, "--init", "--listen", &coordinator.address]);
    assert_ne!(code, 0);
    assert!(message.contains(&coordinator.address), "{message}");

    let agent = outlast.cluster.agents[0].folder.to_string_lossy().into_owned();
    let endpoint = &coordinator.address;
    let (code, message) = refused(&[
        "agent",
        "--name",
        "n1",
        "--data-dir",
        &agent,
        "--coordinator",
        endpoint,
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_ne!(code, 0);
    assert!(message.contains("in use") && message.contains(&agent), "{message}");

    let third = tempfile::tempdir().expect("a folder");
    let third = third.path().to_string_lossy().into_owned();
    let (code, message) = refused(&[
        "agent",
        "--name",
        "n1",
        "--data-dir",
        &third,
        "--coordinator",
        endpoint,
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_ne!(code, 0, "a second agent under a live one's name: {message}");
    assert!(message.contains("n1"), "{message}");
    outlast.assert_nothing_left();
}

#[test]
fn bad_input_a_folder_of_another_node_is_refused_with_both_names() {
    let mut outlast = Outlast::start(1, 1);
    outlast.cluster.agents[0].kill();
    let folder = outlast.cluster.agents[0].folder.to_string_lossy().into_owned();
    let endpoint = outlast.cluster.coordinators[0].address.clone();
    let (code, message) = refused(&[
        "agent",
        "--name",
        "other",
        "--data-dir",
        &folder,
        "--coordinator",
        &endpoint,
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!(code, 78, "{message}");
    assert!(message.contains("n1") && message.contains("other"), "{message}");
    outlast.assert_nothing_left();
}

#[test]
fn bad_input_a_damaged_log_is_set_aside_and_the_way_back_is_told() {
    let mut outlast = Outlast::start(1, 0);
    for i in 0..20 {
        outlast.submit(&shell(&format!("job{i}"), "true"));
    }
    let coordinator = &mut outlast.cluster.coordinators[0];
    coordinator.kill();
    flip_the_log(&coordinator.folder);
    coordinator.start().expect("the process starts");
    let code = wait_for("the refusal", || outlast.cluster.coordinators[0].exit_code());
    let log = outlast.cluster.coordinators[0].log_tail(20);
    assert_eq!(code, 78, "{log}");
    assert!(
        log.contains("quarantine") && log.contains("join"),
        "the message says where it went and what to do: {log}"
    );
    outlast.assert_nothing_left();
}

/// Flips one bit in every 4 KiB of the biggest file below a folder: what a dying disk does.
fn flip_the_log(folder: &Path) {
    let mut folders = vec![folder.to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push((entry.metadata().expect("known").len(), path))
            }
        }
    }
    let (_, biggest) = files.into_iter().max().expect("a file");
    let mut bytes = std::fs::read(&biggest).expect("readable");
    bytes.iter_mut().skip(100).step_by(4_096).for_each(|byte| *byte ^= 4);
    std::fs::write(&biggest, bytes).expect("writable");
}

#[test]
fn bad_input_an_agent_whose_clock_is_far_off_works_all_the_same() {
    let has_unshare = Command::new("unshare").args(["--time", "--boottime", "9000", "true"]).status();
    if !is_root() || !has_unshare.is_ok_and(|status| status.success()) {
        println!("skipped: a time namespace needs root and util-linux");
        return;
    }
    let outlast = Outlast::start(1, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("agent").to_string_lossy().into_owned();
    let exe = exe().to_string_lossy().into_owned();
    let endpoint = &outlast.cluster.coordinators[0].address;
    // Its boot clock is 25 hours ahead; leases count lengths of time only.
    let mut agent = Command::new("unshare")
        .args(["--time", "--boottime", "90000", &exe, "agent", "--name", "late", "--data-dir", &data])
        .args(["--coordinator", endpoint, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare runs");
    let job = outlast.submit(&shell("on-time", "sleep 8"));
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "the node kept its lease for longer than one: {}", done.0);
    // unshare became the agent, so this is the agent itself.
    agent.kill().expect("it is ours");
    agent.wait().expect("waitable");
    outlast.assert_nothing_left();
}

#[test]
fn bad_input_impossible_and_duplicate_jobs_are_explained() {
    let outlast = Outlast::start(1, 1);
    let mut greedy = shell("greedy", "true");
    greedy["resources"] = serde_json::json!({"gpus": 64});
    let job = outlast.submit(&greedy);
    wait_for("the explanation", || {
        let explain = outlast.ok(&["job", "explain", &job]);
        explain.to_lowercase().contains("gpu").then_some(())
    });

    let file = outlast.cluster.folder().join("greedy.json");
    let again = outlast.run(&["job", "submit", "-f", &file.to_string_lossy()]);
    assert_eq!(again.status.code(), Some(4), "a second active job of the name is a conflict");
    assert!(String::from_utf8_lossy(&again.stderr).contains(&job), "the message names the other job");

    let missing = outlast.run(&["job", "show", "nobody"]);
    assert_eq!(missing.status.code(), Some(3));
    outlast.ok(&["job", "cancel", &job, "--yes"]);
    outlast.wait_job(&job, "the cancel", |job| job.state() == "cancelled");
    outlast.assert_nothing_left();
}
