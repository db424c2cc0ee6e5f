//! The operator's verbs against a real cluster.

use std::process::Command;

use super::harness::{Outlast, exe, get, shell, wait_for};

#[test]
fn cli_run_shows_the_output_and_passes_failure_on() {
    let outlast = Outlast::start(1, 1);
    let good = outlast.run(&["job", "run", "--", "sh", "-c", "echo hello from rank $RANK of $WORLD_SIZE"]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(String::from_utf8_lossy(&good.stdout).contains("hello from rank 0 of 1"));
    let python =
        Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if python {
        let run = outlast.run(&[
            "job",
            "run",
            "--",
            "python3",
            "-c",
            "import os; print('python', os.environ['RANK'])",
        ]);
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        assert!(String::from_utf8_lossy(&run.stdout).contains("python 0"));
    } else {
        println!("skipped the Python half: no python3 here");
    }
    let missing = outlast.run(&["job", "run", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("no-such-program"),
        "the message names the program"
    );
    outlast.assert_nothing_left();
}

#[test]
fn cli_a_workdir_travels_and_a_checkpoint_is_put_and_restored_by_a_plain_script() {
    let outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().join("work");
    std::fs::create_dir(&folder).expect("the folder can be made");
    let script = "#!/bin/sh\n\
        set -e\n\
        if [ -n \"$OUTLAST_RESTORE_DIR\" ]; then echo restored $(cat \"$OUTLAST_RESTORE_DIR/state\"); exit 0; fi\n\
        mkdir -p out; echo forty-two > out/state\n\
        outlast checkpoint put out --step 42\n\
        sleep 1\n\
        exit 9\n";
    std::fs::write(folder.join("train.sh"), script).expect("writable");
    std::fs::write(folder.join("secret.log"), "x".repeat(1000)).expect("writable");
    std::fs::write(folder.join(".outlastignore"), "*.log\n").expect("writable");
    let spec = serde_json::json!({"name": "plain", "command": ["sh", "train.sh"], "workdir": folder});
    let job = outlast.submit(&spec);
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 2, "{}", done.0);
    assert_eq!(done.newest()["restore_step"], 42);
    assert!(outlast.ok(&["job", "logs", &job]).contains("restored forty-two"));

    let listed = outlast.json(&["checkpoint", "list", &job]);
    let sealed =
        listed["checkpoints"].as_array().expect("checkpoints").iter().find(|c| c["state"] == "sealed");
    let id = sealed.expect("one is sealed")["id"].as_str().expect("an id").to_owned();
    let verified = outlast.json(&["checkpoint", "verify", &job, &id]);
    assert_eq!(verified["intact"], true, "{verified}");
    assert!(
        verified["results"].as_array().is_some_and(|results| results.len() >= 2),
        "two holders: {verified}"
    );
    outlast.assert_nothing_left();
}

#[test]
fn cli_drain_moves_the_work_away_from_a_node() {
    let outlast = Outlast::start(1, 2);
    let mut spec = shell("mover", "sleep 300");
    spec["recovery"] = serde_json::json!({"stop_grace": "1s"});
    let job = outlast.submit(&spec);
    let before = outlast.wait_job(&job, "the job to run", super::harness::Job::is_running);
    let node = before.node_of(0);
    outlast.ok(&["node", "drain", &node, "--yes"]);
    let after = outlast.wait_job(&job, "the move", |job| job.number() > before.number() && job.is_running());
    assert_ne!(after.node_of(0), node);
    assert_eq!(after.attempts()[0]["cause"], "drained");
    outlast.ok(&["node", "uncordon", &node]);
    outlast.ok(&["job", "cancel", &job, "--yes"]);
    outlast.wait_job(&job, "the cancel", |job| job.state() == "cancelled");
    outlast.assert_nothing_left();
}

#[test]
fn cli_http_answers_on_the_same_port_as_grpc() {
    let outlast = Outlast::start(1, 1);
    let address = outlast.cluster.coordinators[0].address.clone();
    assert!(get(&address, "/healthz").starts_with("HTTP/1.1 200"));
    wait_for("readiness", || get(&address, "/readyz").starts_with("HTTP/1.1 200").then_some(()));
    assert!(
        get(&address, "/metrics").contains("outlast_coordinator_leader 1"),
        "{}",
        get(&address, "/metrics")
    );
    assert!(get(&address, "/v1/nodes").contains("\"n1\""));
    assert!(get(&address, "/v1/jobs/nobody").starts_with("HTTP/1.1 404"));
    outlast.assert_nothing_left();
}

#[test]
fn cli_dev_is_one_command_and_cleans_up_after_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let mut dev = Command::new(exe())
        .args(["dev", "--data-dir", &data.to_string_lossy(), "--listen", "127.0.0.1:0"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(dev.stdout.take().expect("piped")));
    let ready = lines.next().expect("a ready line").expect("readable");
    let url = ready
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .expect("an address in the ready line");
    let url = url.trim_end_matches(',');
    let run = Command::new(exe())
        .args(["job", "run", "--", "echo", "dev works"])
        .env("OUTLAST_COORDINATOR", url)
        .output()
        .expect("the binary runs");
    assert!(String::from_utf8_lossy(&run.stdout).contains("dev works"), "{run:?}");
    let pid = rustix::process::Pid::from_raw(dev.id() as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is ours");
    let code = wait_for("the end of dev", || dev.try_wait().expect("waitable"));
    assert_eq!(code.code(), Some(0));
    let left = outlast_local::find_processes(&data);
    assert!(left.is_empty(), "{left:?}");
}
