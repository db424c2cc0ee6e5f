//! `checkpoint export` and `checkpoint verify --deep` against real bytes on real disks.

use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{Job, Outlast, get, metric, wait_for};

/// Two ranks that hand a folder over and go on running.
fn save_and_stay(outlast: &Outlast, name: &str) -> String {
    let script = "set -e\nmkdir -p out/deep; echo state of rank $RANK > out/deep/state\n\
        outlast checkpoint put out --step 42 --wait 60s\nsleep 300\n";
    let spec = serde_json::json!({
        "name": name, "script": script, "workers": 2, "resources": {"cpus": 0.5},
        "checkpoint": {"every": "1h", "durability": "replicated"},
        "recovery": {"stop_grace": "1s"},
    });
    let job = outlast.submit(&spec);
    outlast.wait_job(&job, "the seal", |job| job.sealed() == [42]);
    wait_for("two copies of each rank", || (live_copies(outlast, &job) == [2, 2]).then_some(()));
    // Or a proof or the scrubber would find the damage before the test does.
    wait_for("the proof", || (newest(outlast, &job)["proven"] == true).then_some(()));
    for agent in &outlast.cluster.agents {
        let scrubbed = || metric(&agent.address, "outlast_agent_shards_scrubbed_total") >= 2.0;
        wait_for("the scrubber's first round", || scrubbed().then_some(()));
    }
    job
}

fn newest(outlast: &Outlast, job: &str) -> serde_json::Value {
    let listed = outlast.json(&["checkpoint", "list", job]);
    listed["checkpoints"].as_array().and_then(|all| all.last().cloned()).expect("a checkpoint")
}

fn live_copies(outlast: &Outlast, job: &str) -> Vec<usize> {
    let checkpoint = newest(outlast, job);
    let shards = checkpoint["shards"].as_array().cloned().unwrap_or_default();
    let live = |shard: &serde_json::Value| {
        let holders = shard["holders"].as_array().map_or(&[][..], Vec::as_slice);
        holders.iter().filter(|holder| holder["live"] == true).count()
    };
    shards.iter().map(live).collect()
}

/// The files with a rank's bytes below a folder.
fn shard_files(below: &Path, rank: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.components().any(|part| part.as_os_str() == "blobs")
                && name.starts_with(&format!("{rank}-"))
                && path.extension().is_none()
            {
                found.push(path);
            }
        }
    }
    found
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).expect("a shard");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("writable");
}

fn end(outlast: Outlast, job: &str) {
    outlast.ok(&["job", "cancel", job, "--yes"]);
    outlast.wait_job(job, "the cancel", |job: &Job| job.state() == "cancelled");
    outlast.assert_nothing_left();
}

#[test]
fn checkpoint_export_writes_ordinary_folders_or_nothing() {
    let outlast = Outlast::start(1, 2);
    let job = save_and_stay(&outlast, "exported");
    let folder = outlast.cluster.folder().join("exports");
    fs::create_dir(&folder).expect("made");
    let to = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let read =
        |name: &str, rank: u32| fs::read_to_string(folder.join(format!("{name}/rank-{rank}/deep/state")));

    let told = outlast.json(&["checkpoint", "export", &job, "--to", &to("first")]);
    assert_eq!(told["step"], 42, "{told}");
    for rank in 0..2 {
        assert_eq!(read("first", rank).expect("exported"), format!("state of rank {rank}\n"));
    }

    let again = outlast.run(&["checkpoint", "export", &job, "--to", &to("first")]);
    assert_eq!(again.status.code(), Some(4), "a folder with something in it is refused");

    // One damaged copy: the bytes come from the other holder, and nobody notices.
    let id = newest(&outlast, &job)["id"].as_str().expect("an id").to_owned();
    flip_a_bit(&shard_files(&outlast.cluster.folder().join("n1"), 0)[0]);
    outlast.ok(&["checkpoint", "export", &job, &id, "--to", &to("second")]);
    assert_eq!(read("second", 0).expect("exported"), "state of rank 0\n");
    wait_for("two copies of each rank again", || (live_copies(&outlast, &job) == [2, 2]).then_some(()));

    // No good copy anywhere: no folder, and nothing half-written beside it.
    for node in ["n1", "n2"] {
        shard_files(&outlast.cluster.folder().join(node), 1).iter().for_each(|file| flip_a_bit(file));
    }
    let lost = outlast.run(&["checkpoint", "export", &job, &id, "--to", &to("third")]);
    assert_eq!(lost.status.code(), Some(4), "{}", String::from_utf8_lossy(&lost.stderr));
    assert!(String::from_utf8_lossy(&lost.stderr).contains("rank 1"), "the message names the rank");
    let mut left: Vec<_> =
        fs::read_dir(&folder).expect("there").flatten().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, ["first", "second"]);
    end(outlast, &job);
}

#[test]
fn checkpoint_verify_deep_finds_a_flipped_bit_and_waits_until_it_is_repaired() {
    let outlast = Outlast::start(1, 2);
    let job = save_and_stay(&outlast, "verified");
    let clean = outlast.run(&["checkpoint", "verify", &job, "--deep"]);
    assert_eq!(clean.status.code(), Some(0), "{}", String::from_utf8_lossy(&clean.stderr));

    flip_a_bit(&shard_files(&outlast.cluster.folder().join("n2"), 1)[0]);
    let looked = outlast.json(&["checkpoint", "verify", &job]);
    assert_eq!(looked["intact"], true, "a look does not read the bytes: {looked}");
    let deep = outlast.json(&["checkpoint", "verify", &job, "--deep"]);
    let results = deep["results"].as_array().expect("results");
    let damaged: Vec<_> = results.iter().filter(|one| one["outcome"] == "corrupt").collect();
    assert_eq!(damaged.len(), 1, "{deep}");
    assert_eq!((&damaged[0]["node"], &damaged[0]["repair"]), (&"n2".into(), &"repaired".into()), "{deep}");

    let table = outlast.ok(&["checkpoint", "verify", &job, "--deep"]);
    assert_eq!(table.matches("good").count(), 4, "all is well again: {table}");
    let explained = outlast.ok(&["job", "explain", &job]);
    for told in ["node n2 lost its copy of rank 1", "node n2 has a copy of rank 1", "saves every"] {
        assert!(explained.contains(told), "{told:?} is missing in\n{explained}");
    }
    assert!(outlast.ok(&["job", "show", &job]).contains("saves every 60 min, as the job says"));

    let of_agent = get(&outlast.cluster.agents[1].address, "/metrics");
    assert!(of_agent.contains("outlast_checkpoint_verify_failures_total 1"), "{of_agent}");
    let of_coordinator = get(&outlast.cluster.coordinators[0].address, "/metrics");
    for told in [
        "outlast_checkpoint_replicas{state=\"live\"} 4",
        "outlast_checkpoint_replicas{state=\"missing\"} 0",
        "outlast_checkpoint_last_durable_step{job_name=\"verified\"} 42",
        "outlast_checkpoint_duration_seconds_count{phase=\"seal\"} 1",
    ] {
        assert!(of_coordinator.contains(told), "{told:?} is missing in\n{of_coordinator}");
    }
    end(outlast, &job);
}
