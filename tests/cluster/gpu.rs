//! GPUs are given out as devices, and never twice at one time (invariant 20). The devices are pretended: `--gpus`.

use outlast_local::Builder;
use serde_json::{Value, json};

use super::harness::{Job, Outlast, exe, shell, wait_for};

fn wants_one(name: &str) -> Value {
    let mut spec = shell(name, "echo sees=$CUDA_VISIBLE_DEVICES; exec sleep 1000");
    spec["resources"] = json!({"cpus": 0.5, "gpus": 1});
    spec
}

/// The device that the newest attempt of the job was told of.
fn device(outlast: &Outlast, job: &str) -> String {
    wait_for("the worker's first line", || {
        let logs = outlast.ok(&["job", "logs", job]);
        let line = logs.lines().rev().find_map(|line| Some(line.split_once("sees=")?.1.to_owned()));
        line.filter(|device| !device.is_empty())
    })
}

#[test]
fn gpu_jobs_get_devices_of_their_own_and_who_finds_none_waits_and_says_so() {
    let builder = Builder::new(exe()).coordinators(1).agents(1).agent_args(&["--cpus", "4", "--gpus", "2"]);
    let outlast = Outlast::start_with(builder);
    let first = outlast.submit(&wants_one("first"));
    let second = outlast.submit(&wants_one("second"));
    for job in [&first, &second] {
        outlast.wait_job(job, "the job to run", Job::is_running);
    }
    let devices = [device(&outlast, &first), device(&outlast, &second)];
    assert!(devices == ["0", "1"] || devices == ["1", "0"], "{devices:?}");
    let none = outlast.submit(&shell("blind", "echo sees=[$CUDA_VISIBLE_DEVICES]"));
    outlast.wait_success(&none);
    assert!(outlast.ok(&["job", "logs", &none]).contains("sees=[]"), "who wants none sees none");

    let third = outlast.submit(&wants_one("third"));
    let explain = wait_for("the reason", || {
        let explain = outlast.ok(&["job", "explain", &third]);
        explain.contains("waits: no node has 0.5 cpus, 1 GPU free").then_some(explain)
    });
    assert!(explain.contains("0 of 2 GPUs free"), "{explain}");

    outlast.ok(&["job", "cancel", &first, "--yes"]);
    outlast.wait_job(&third, "the third to run", Job::is_running);
    assert_eq!(device(&outlast, &third), devices[0], "it gets what the first one gave back");
    let node = outlast.json(&["node", "show", "n1"]);
    assert_eq!((node["gpus"].as_u64(), node["gpus_free"].as_u64()), (Some(2), Some(0)), "{node}");
    outlast.assert_nothing_left();
}
