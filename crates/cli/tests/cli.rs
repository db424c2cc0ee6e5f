//! The binary as scripts and people meet it, without a cluster: messages, exit codes, what goes where.
//!
//! `OUTLAST_SNAPSHOTS=write cargo test -p outlast --test cli` writes the files in `snapshots/` anew.

use std::path::Path;
use std::process::{Command, Output};

/// Nobody listens on port 1, and the environment of whoever runs the tests must not count.
fn outlast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlast"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.env("OUTLAST_COORDINATOR", "127.0.0.1:1");
    command
}

fn run(args: &[&str]) -> Output {
    outlast().args(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[track_caller]
fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var("OUTLAST_SNAPSHOTS").is_ok_and(|word| word == "write") {
        std::fs::write(&path, text).expect("is written");
    }
    let expected = std::fs::read_to_string(&path).expect("OUTLAST_SNAPSHOTS=write makes it");
    assert_eq!(text, expected, "{name} changed; OUTLAST_SNAPSHOTS=write accepts it");
}

/// Runs `job submit -f` on a file with this text.
fn submit(name: &str, text: &str) -> Output {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join(name), text).expect("is written");
    outlast().current_dir(dir.path()).args(["job", "submit", "-f", name]).output().expect("the binary runs")
}

#[test]
fn help_texts() {
    for (name, args) in [
        ("help.txt", &["--help"][..]),
        ("help-job.txt", &["job", "--help"]),
        ("help-job-run.txt", &["job", "run", "--help"]),
        ("help-job-submit.txt", &["job", "submit", "--help"]),
        ("help-node.txt", &["node", "--help"]),
        ("help-checkpoint.txt", &["checkpoint", "--help"]),
        ("help-cluster.txt", &["cluster", "--help"]),
        ("help-coordinator.txt", &["coordinator", "--help"]),
        ("help-agent.txt", &["agent", "--help"]),
        ("help-dev.txt", &["dev", "--help"]),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_snapshot(name, &stdout(&output));
    }
}

#[test]
fn a_bad_job_file_is_a_usage_error_that_names_the_key_and_the_nearest() {
    let output = submit("job.yaml", "name: a\ncommand: [x]\nwrokers: 2\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "", "talk does not go to stdout");
    assert_snapshot("unknown-key.txt", &stderr(&output));
    for (text, expected) in [
        ("name: a\ncommand: [x]\nresources: {memory: 12 parsecs}\n", "`resources.memory`"),
        ("name: a\ncommand: [x]\nresources: {memory: -5}\n", "`resources.memory`: -5 is not allowed"),
        ("name: a\ncommand: [x]\ncheckpoint: {every: soon}\n", "write a time such as 10s"),
        ("name: a\nname: b\ncommand: [x]\n", "duplicate"),
        ("name: a\ncommand: [x]\nworkdir: nowhere\n", "it is not a folder"),
        ("name: [\n", "job.yaml is not YAML"),
    ] {
        let output = submit("job.yaml", text);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(stderr(&output).contains(expected), "{text}: {}", stderr(&output));
    }
}

#[test]
fn a_missing_job_file_is_not_found() {
    let output = run(&["job", "submit", "-f", "/nonexistent/job.yaml"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("/nonexistent/job.yaml"), "{}", stderr(&output));
}

#[test]
fn an_unreachable_cluster_is_6_with_the_way_out() {
    let output = run(&["job", "list", "--timeout", "200ms"]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    let told = stderr(&output);
    for part in ["no coordinator could be reached", "http://127.0.0.1:1: connection refused", "outlast dev"] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert_eq!(stdout(&output), "");
}

#[test]
fn usage_errors_are_2() {
    for args in [
        &["jbo"][..],
        &["job", "list", "-o", "xml"],
        &["job", "list", "--timeout", "10"],
        &["job", "show"],
        &["job", "list", "--coordinator", "https://a:1"],
        &["cluster", "remove", "c1"],
        &["checkpoint", "put", ".", "--step", "1"],
        &["coordinator", "--listen", "nowhere"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn what_kills_work_needs_a_yes_where_nobody_can_be_asked() {
    let output = run(&["cluster", "remove", "c2"]);
    assert_snapshot("needs-yes.txt", &stderr(&output));
}

#[test]
fn completions_exist_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("outlast") && script.contains("checkpoint"), "{shell}");
        assert!(!script.contains("keeper DIR"), "{shell}");
    }
}

#[test]
fn no_colours_without_a_terminal_or_with_no_color() {
    for command in [&mut outlast(), outlast().env("NO_COLOR", "1").env("TERM", "xterm-256color")] {
        let output = command.args(["job", "list", "--timeout", "50ms"]).output().expect("the binary runs");
        assert!(!output.stderr.contains(&0x1b), "{}", stderr(&output));
    }
    let output = outlast().env("NO_COLOR", "1").arg("--help").output().expect("the binary runs");
    assert!(!output.stdout.contains(&0x1b));
}

#[test]
fn the_version_has_a_form_for_machines() {
    let output = run(&["version", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
    assert!(stdout(&run(&["version"])).starts_with("outlast "));
}

#[test]
fn print_config_says_where_each_value_comes_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "listen = '127.0.0.1:7410'\nprofile = 'wan'\n").expect("is written");
    let mut command = outlast();
    command.env("OUTLAST_PROFILE", "lan").args([
        "coordinator",
        "--print-config",
        "--data-dir",
        "d",
        "--config",
    ]);
    let output = command.arg(&file).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let printed = stdout(&output).replace(&file.display().to_string(), "c.toml");
    assert_snapshot("print-config.txt", &printed);
}

#[test]
fn an_unknown_setting_is_named_with_the_nearest() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("c.toml"), "lisen = '127.0.0.1:7410'\n").expect("is written");
    let mut command = outlast();
    command.current_dir(dir.path()).args(["agent", "--config", "c.toml"]);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    assert_snapshot("unknown-setting.txt", &stderr(&output));
}

#[test]
fn an_open_address_without_tls_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for args in [
        &["coordinator", "--init", "--listen", "0.0.0.0:0", "--advertise", "a:1", "--data-dir", "c"][..],
        &["agent", "--name", "n1", "--listen", "0.0.0.0:0", "--advertise", "a:1", "--data-dir", "a"],
    ] {
        let output = outlast().current_dir(dir.path()).args(args).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("--insecure"), "{args:?}: {}", stderr(&output));
    }
}
