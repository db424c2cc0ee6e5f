//! What becomes of sealed checkpoints when disks lie, lose and are lost.

use std::fs;
use std::path::{Path, PathBuf};

use outlast_local::Builder;
use serde_json::{Value, json};

use super::harness::{Job, Outlast, exe, wait_for};
use super::saver::{Saver, check_all, checkpoints, sealed_step, stop_file, wait_next_seal};

/// Saves three steps in turn, each with its own bytes, and waits for each seal; then ends, or waits for a sign.
fn saving(name: &str, durability: &str, then: &str) -> Value {
    let outlast = exe();
    let script = format!(
        "set -e; if [ -n \"$OUTLAST_RESTORE_DIR\" ]; then cat \"$OUTLAST_RESTORE_DIR/weights\" >> \"$RESULT\"; exit 0; fi
         for step in 1 2 3; do
           mkdir -p out; head -c 3000000 /dev/zero | tr '\\0' \"$step\" > out/weights
           {} checkpoint put out --step $step --wait 60s
         done
         {then}",
        outlast.display()
    );
    json!({
        "name": name, "script": script, "resources": {"cpus": 0.5},
        "checkpoint": {"keep": 1, "durability": durability},
    })
}

/// The newest sealed checkpoint, once it fits.
fn wait_checkpoint(outlast: &Outlast, job: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || {
        let output = outlast.run(&["job", "show", job, "-o", "json"]);
        let job: Value = serde_json::from_slice(&output.stdout).ok()?;
        let mut sealed = job["checkpoints"].as_array()?.iter().filter(|c| c["state"] == "sealed");
        sealed.next_back().filter(|newest| fits(newest)).cloned()
    })
}

fn live_holders(checkpoint: &Value) -> Vec<String> {
    let holders = checkpoint["shards"][0]["holders"].as_array().map_or(&[][..], Vec::as_slice);
    let live = holders.iter().filter(|holder| holder["live"] == true);
    live.filter_map(|holder| holder["node"].as_str().map(str::to_owned)).collect()
}

fn is_replicated(checkpoint: &Value) -> bool {
    checkpoint["durability_now"] == "replicated"
}

/// Files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

/// The shard's file on a node.
fn shard(outlast: &Outlast, node: &str, checkpoint: &Value) -> Option<PathBuf> {
    let root = checkpoint["shards"][0]["root"].as_str().expect("a root");
    let name = format!("0-{root}");
    let folder = outlast.cluster.folder().join(node).join("shards/blobs");
    files(&folder).into_iter().find(|path| path.file_name().is_some_and(|file| *file == *name))
}

/// Every machine ends and its disk is gone. One whose disk was replaced waits one lease under its old name.
fn lose_all_disks(outlast: &mut Outlast) {
    let folder = outlast.cluster.folder().to_owned();
    for agent in &mut outlast.cluster.agents {
        agent.kill_tree();
        fs::remove_dir_all(folder.join(&agent.name)).expect("the disk is lost");
    }
    for agent in &outlast.cluster.agents {
        wait_for("the node to be lost", || {
            (outlast.json(&["node", "show", &agent.name])["condition"] == "lost").then_some(())
        });
    }
}

#[test]
fn checkpoint_shards_deleted_under_a_running_agent_are_replaced_without_a_hand() {
    let outlast = Outlast::start(1, 3);
    let job = outlast.submit(&saving("a", "replicated", "true"));
    outlast.wait_success(&job);
    let newest = wait_checkpoint(&outlast, &job, "two copies", is_replicated);
    let before = live_holders(&newest);
    fs::remove_dir_all(outlast.cluster.folder().join(&before[0]).join("shards")).expect("deleted");
    // The folder's loss is noticed, a copy is ordered, and it arrives: at the same node or at another one.
    let repaired = wait_for("the copy to be replaced", || {
        let newest = wait_checkpoint(&outlast, &job, "two copies", is_replicated);
        let holders = live_holders(&newest);
        holders.iter().all(|node| shard(&outlast, node, &newest).is_some()).then_some(newest)
    });
    assert_eq!(repaired["shards"][0]["root"], newest["shards"][0]["root"]);
    outlast.ok(&["checkpoint", "verify", &job, newest["id"].as_str().expect("an id")]);
    let events = outlast.ok(&["job", "events", &job]);
    assert!(events.contains("lost its copy") && events.contains("has a copy"), "{events}");
    outlast.assert_nothing_left();
}

/// Everything of a node, also what its agent and the keeper of a running worker have in use.
#[test]
fn checkpoint_folders_of_whole_nodes_deleted_under_a_running_job_are_repaired_without_a_hand() {
    let outlast = Outlast::start(1, 3);
    let folder = outlast.cluster.folder().to_owned();
    let spec = Saver::new("steady", &folder);
    let job = outlast.submit(&spec.spec());
    let mut sealed = wait_next_seal(&outlast, &job, 0);
    for is_workers in [false, true] {
        let newest = wait_checkpoint(&outlast, &job, "two copies", is_replicated);
        let runs_on = outlast.wait_job(&job, "it runs", Job::is_running).node_of(0);
        let holders = live_holders(&newest);
        let node = holders.iter().find(|node| (**node == runs_on) == is_workers).expect("one of two");
        // What is written meanwhile is in the way of the deletion.
        wait_for("the folder to be deleted", || fs::remove_dir_all(folder.join(node)).ok());
        sealed = wait_next_seal(&outlast, &job, sealed_step(&outlast, &job).max(sealed));
        wait_for("the newest one to have two copies that are there", || {
            let newest = wait_checkpoint(&outlast, &job, "two copies", is_replicated);
            let holders = live_holders(&newest);
            holders.iter().all(|node| shard(&outlast, node, &newest).is_some()).then_some(())
        });
    }
    fs::write(stop_file(&folder, "steady"), "").expect("written");
    outlast.wait_success(&job);
    check_all(&outlast, &job, &spec);
    outlast.assert_nothing_left();
}

#[test]
fn checkpoint_in_the_object_store_survives_every_disk_and_goes_when_it_is_retired() {
    let bucket = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", bucket.path().display());
    let builder = Builder::new(exe()).coordinators(1).agents(2).agent_args(&["--cpus", "4", "--store", &url]);
    let mut outlast = Outlast::start_with(builder);
    let result = outlast.cluster.folder().join("result");
    let mut spec = saving("a", "stored", "while :; do sleep 0.2; done");
    spec["env"] = json!({"RESULT": result});
    let job = outlast.submit(&spec);
    let is_stored = |c: &Value| c["step"] == 3 && c["durability_now"] == "stored";
    wait_checkpoint(&outlast, &job, "the third step in the store", is_stored);
    // Earlier ones are retired (keep: 1), and leave the store by their exact keys.
    wait_for("one commit to be left", || {
        let all = files(bucket.path());
        let commits = all.iter().filter(|path| path.ends_with("COMMIT")).count();
        (commits == 1).then_some(())
    });
    lose_all_disks(&mut outlast);
    for agent in &mut outlast.cluster.agents {
        agent.start().expect("starts with an empty disk");
    }
    outlast.wait_success(&job);
    let restored = fs::read(&result).expect("the worker wrote what it restored");
    assert!(
        restored.len() == 3_000_000 && restored.iter().all(|byte| *byte == b'3'),
        "{} bytes",
        restored.len()
    );
    outlast.assert_nothing_left();
}

/// The nodes may not take copies, so nothing heals before the operator looks.
#[test]
fn checkpoint_that_only_the_object_store_has_is_verified_and_exported_from_there() {
    let bucket = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", bucket.path().display());
    let builder = Builder::new(exe()).coordinators(1).agents(2).agent_args(&["--cpus", "4", "--store", &url]);
    let mut outlast = Outlast::start_with(builder);
    let job = outlast.submit(&saving("a", "stored", "true"));
    let is_stored = |c: &Value| c["step"] == 3 && c["durability_now"] == "stored";
    let newest = wait_checkpoint(&outlast, &job, "the third step in the store", is_stored);
    outlast.wait_success(&job);
    let id = newest["id"].as_str().expect("an id");
    for node in ["n1", "n2"] {
        outlast.ok(&["node", "drain", node, "--yes"]);
    }
    lose_all_disks(&mut outlast);
    let to = outlast.cluster.folder().join("exported");
    let to_text = to.display().to_string();
    let export = ["checkpoint", "export", &job, id, "--to", &to_text];
    let early = outlast.run(&export);
    let told = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(!early.status.success() && told.contains("cannot be read now"), "{told}");
    for agent in &mut outlast.cluster.agents {
        agent.start().expect("starts with an empty disk");
    }
    wait_for("a node that reaches the store", || outlast.run(&export).status.success().then_some(()));
    let weights = fs::read(to.join("rank-0/weights")).expect("exported");
    assert!(weights.len() == 3_000_000 && weights.iter().all(|byte| *byte == b'3'));
    for depth in [&[][..], &["--deep"]] {
        let told = outlast.ok(&[&["checkpoint", "verify", &job, id][..], depth].concat());
        assert!(told.contains("the object store, through n"), "{told}");
    }

    let data =
        files(bucket.path()).into_iter().max_by_key(|path| path.metadata().map_or(0, |found| found.len()));
    let data = data.expect("the largest object");
    let mut bytes = fs::read(&data).expect("read");
    bytes[1_000_000] ^= 1;
    fs::write(&data, bytes).expect("damaged");
    let verified = outlast.run(&["checkpoint", "verify", &job, id, "--deep"]);
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(!verified.status.success() && told.contains("damaged"), "{told}");
    fs::remove_dir_all(&to).expect("removed");
    let exported = outlast.run(&export);
    let told = String::from_utf8_lossy(&exported.stderr).into_owned();
    assert!(!exported.status.success() && told.contains("no holder has good bytes"), "{told}");
    assert!(!to.exists(), "nothing that is damaged is left");
    outlast.assert_nothing_left();
}

/// A job's history names fifty checkpoints that are over. The record of one that is retired after so many newer ones leaves
/// with its retirement, and the agents cannot be told the one without the other.
#[test]
fn checkpoints_that_are_unpinned_late_leave_the_disks_all_the_same() {
    let outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().to_owned();
    let spec = Saver::new("pinned", &folder);
    let job = outlast.submit(&spec.spec());
    let first = wait_next_seal(&outlast, &job, 0);
    let id_of = |step: u64| {
        let all = checkpoints(&outlast, &job);
        all.iter().find(|one| one["step"] == step).and_then(|one| one["id"].as_str().map(str::to_owned))
    };
    let pinned = id_of(first).expect("the newest is kept");
    outlast.ok(&["checkpoint", "pin", &job, &pinned]);
    wait_for("sixty newer ones", || (sealed_step(&outlast, &job) > first + 60).then_some(()));
    assert_eq!(id_of(first).as_ref(), Some(&pinned), "it is kept as long as it is pinned");
    outlast.ok(&["checkpoint", "unpin", &job, &pinned]);
    wait_for("its record to leave", || id_of(first).is_none().then_some(()));
    fs::write(stop_file(&folder, "pinned"), "").expect("written");
    outlast.wait_success(&job);
    check_all(&outlast, &job, &spec);
    outlast.assert_nothing_left();
}
