//! The rest of the table of failures: full disks, an object store that is away, a zombie, bits that rot. Each ends with the
//! same questions about what is sealed (`saver::check_all`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast_local::{Builder, Found, find_processes};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::disk::{SmallDisk, fill};
use super::harness::{Job, Outlast, exe, get, is_root, wait_for};
use super::saver::{
    Saver, check_all, check_bytes, checkpoints, files, refusal_file, sealed_step, stop_file, wait_next_seal,
};

fn stop(outlast: &Outlast, job: &str, saver: &Saver<'_>) -> Job {
    fs::write(stop_file(saver.folder, saver.name), "").expect("written");
    let done = outlast.wait_success(job);
    check_all(outlast, job, saver);
    done
}

/// Fills the disk, again when an older checkpoint goes, until a save was given up for want of room and the node says why.
fn fill_until_full(outlast: &Outlast, job: &str, disk: &Path) -> PathBuf {
    let filler = wait_for("a save to be given up, and the node to say that its disk is full", || {
        let filler = fill(disk, 1_024);
        std::thread::sleep(Duration::from_millis(300));
        let is_it = |one: &Value| {
            one["state"] == "aborted"
                && one["reason"].as_str().is_some_and(|why| why.contains("disk is full"))
        };
        let node = outlast.json(&["node", "show", "n1"]);
        let is_told = node["suspect_reason"].as_str().is_some_and(|why| why.contains("disk is full"));
        (is_told && checkpoints(outlast, job).iter().any(is_it)).then_some(filler)
    });
    let explained = outlast.ok(&["job", "explain", job]);
    assert!(explained.contains("disk is full"), "{explained}");
    filler
}

#[test]
fn faults_full_disk_skips_saves_and_loses_nothing_whether_it_is_known_before_or_in_the_middle() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("n1"), "24m");
    let outlast = Outlast::start_with(Builder::new(exe()).coordinators(1).agents(1).folder(folder.path()));
    // From memory the size is known, and the room is asked for first. A folder is packed as it is read: it fails midway.
    for (name, way) in [("known", "memory"), ("middle", "outside")] {
        // On one node "replicated" would be degraded, and degraded ones replace nothing: the disk would fill up by itself.
        let saver =
            Saver { way, size_bytes: 3_000_001, durability: "local", ..Saver::new(name, folder.path()) };
        let job = outlast.submit(&saver.spec());
        let before = wait_next_seal(&outlast, &job, 1);
        let filler = fill_until_full(&outlast, &job, &folder.path().join("n1"));
        let kept = sealed_step(&outlast, &job);
        assert!(kept >= before, "nothing good was dropped: {before}, {kept}");
        outlast.ok(&["checkpoint", "verify", &job, "--deep"]);
        fs::remove_file(filler).expect("the filler goes");
        wait_next_seal(&outlast, &job, kept);
        let done = stop(&outlast, &job, &saver);
        assert_eq!(done.attempts().len(), 1, "training went on: {}", done.0);
    }
    outlast.assert_nothing_left();
    drop(disk);
}

/// The checkpoints that a bucket has something of: their names, and whether they are committed.
fn in_bucket(bucket: &Path) -> Vec<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    for file in files(bucket) {
        let Some(folder) = file.parent() else { continue };
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        found.push((name, folder.join("COMMIT").exists()));
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn faults_object_store_away_for_a_while_keeps_nobody_from_sealing_and_it_catches_up() {
    let bucket = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", bucket.path().display());
    let builder = Builder::new(exe()).coordinators(1).agents(2).agent_args(&["--cpus", "4", "--store", &url]);
    let mut outlast = Outlast::start_with(builder);
    let folder = outlast.cluster.folder().to_owned();
    let saver = Saver { workers: 2, durability: "stored", ..Saver::new("stored", &folder) };
    let job = outlast.submit(&saver.spec());
    let newest = |outlast: &Outlast| {
        let sealed = checkpoints(outlast, &job).into_iter().filter(|one| one["state"] == "sealed");
        sealed.max_by_key(|one| one["step"].as_u64())
    };
    let is_stored = |one: &Value| one["durability_now"] == "stored";
    wait_for("a checkpoint in the store", || newest(&outlast).filter(is_stored));

    // In the way of every object, as a store is that takes nothing.
    let (objects, aside) = (bucket.path().join("blobs"), bucket.path().join("aside"));
    fs::rename(&objects, &aside).expect("away");
    fs::write(&objects, b"").expect("in the way");
    let at_outage = sealed_step(&outlast, &job);
    let first = wait_next_seal(&outlast, &job, at_outage + 1);
    assert_eq!(newest(&outlast).expect("sealed")["durability_now"], "replicated");
    outlast.cluster.agents[0].kill();
    outlast.cluster.agents[0].start().expect("it starts without the store");
    wait_next_seal(&outlast, &job, first + 1);
    let explained = outlast.ok(&["job", "explain", &job]);
    assert!(explained.contains("the object store has") && explained.contains("and not yet"), "{explained}");
    let metrics = get(&outlast.cluster.coordinators[0].address, "/metrics");
    assert!(
        metrics.contains("outlast_checkpoint_last_stored_timestamp_seconds{job_name=\"stored\"}"),
        "{metrics}"
    );

    fs::remove_file(&objects).expect("out of the way");
    fs::rename(&aside, &objects).expect("back");
    fs::write(stop_file(&folder, "stored"), "").expect("written");
    outlast.wait_success(&job);
    wait_for("the newest checkpoint in the store", || newest(&outlast).filter(is_stored));
    check_all(&outlast, &job, &saver);
    wait_for("the bucket to hold what is sealed, and all of it", || {
        let sealed: Vec<Value> =
            checkpoints(&outlast, &job).into_iter().filter(|one| one["state"] == "sealed").collect();
        let found = in_bucket(bucket.path());
        let is_right = |(name, committed): &(String, bool)| {
            sealed.iter().any(|one| one["id"] == **name && is_stored(one) == *committed)
        };
        let is_all = found.iter().all(is_right) && !found.is_empty();
        if !is_all {
            println!("in the bucket: {found:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
        is_all.then_some(())
    });
    outlast.assert_nothing_left();
}

/// To all of a node at once: agent, keepers, workers.
fn signal_tree(folder: &Path, signal: Signal) {
    signal_where(folder, signal, |_| true);
}

fn signal_where(folder: &Path, signal: Signal, is_meant: impl Fn(&Found) -> bool) {
    for found in find_processes(folder).iter().filter(|found| is_meant(found)) {
        let _ = kill_process(Pid::from_raw(found.pid).expect("a pid"), signal);
    }
}

#[test]
fn faults_zombie_node_comes_back_after_its_successor_sealed_and_changes_nothing() {
    let mut outlast = Outlast::start(1, 3);
    let folder = outlast.cluster.folder().to_owned();
    let saver = Saver::new("frozen", &folder);
    let job = outlast.submit(&saver.spec());
    let before = wait_next_seal(&outlast, &job, 2);
    let first = outlast.wait_job(&job, "the job to run", Job::is_running);
    let node = first.node_of(0);
    let frozen = outlast.cluster.agent_mut(&node).expect("the node").folder.clone();
    signal_tree(&frozen, Signal::STOP);
    let second =
        outlast.wait_job(&job, "a successor", |job| job.number() > first.number() && job.is_running());
    assert_ne!(second.node_of(0), node);
    let sealed = wait_next_seal(&outlast, &job, before + 1);
    let stale = first.newest()["id"].as_str().expect("an id").to_owned();
    let of_stale = |outlast: &Outlast| -> Vec<Value> {
        checkpoints(outlast, &job).into_iter().filter(|one| one["attempt"] == *stale).collect()
    };
    // What it had sealed may be kept or retired; nothing may be added.
    let known = of_stale(&outlast);
    let late = |one: &&Value| {
        let before = known.iter().find(|known| known["id"] == one["id"]);
        before.is_none_or(|before| one["state"] == "sealed" && before["state"] != "sealed")
    };
    // Its keeper would end the worker at once. Without it the worker lives to hear what becomes of its next save.
    let refused = refusal_file(&folder, "frozen");
    let _ = fs::remove_file(&refused);
    signal_where(&frozen, Signal::CONT, |found| !found.command.contains(" keeper "));
    wait_for("the zombie to hear that it is over", || {
        let why = fs::read_to_string(&refused).unwrap_or_default();
        why.contains("this attempt is over").then_some(())
    });
    signal_tree(&frozen, Signal::CONT);
    wait_for("the zombie's worker to be gone", || {
        let found = find_processes(&frozen);
        found.iter().all(|found| !found.command.contains("saver_program")).then_some(())
    });
    wait_for("the node to be ready again", || {
        (outlast.json(&["node", "show", &node])["condition"] == "ready").then_some(())
    });
    wait_next_seal(&outlast, &job, sealed);
    assert_eq!(of_stale(&outlast).iter().find(late), None, "it neither opened nor sealed anything");
    let done = stop(&outlast, &job, &saver);
    assert_eq!(of_stale(&outlast).iter().find(late), None, "nor did anything come of it later");
    assert_eq!(done.attempts().len(), 2, "the zombie cost nothing: {}", done.0);
    let events = outlast.ok(&["job", "events", &job]);
    assert!(events.contains("node_lost") || done.attempts()[0]["cause"] == "node_lost", "{events}");
    outlast.assert_nothing_left();
}

/// The one shard of the job's newest checkpoint on a node.
fn shard_of(outlast: &Outlast, node: &str, job: &str) -> Option<PathBuf> {
    let all = checkpoints(outlast, job);
    let newest = all.iter().rev().find(|one| one["state"] == "sealed")?;
    let name = format!("0-{}", newest["shards"][0]["root"].as_str()?);
    let below = outlast.cluster.folder().join(node).join("shards/blobs");
    files(&below).into_iter().find(|path| path.file_name().is_some_and(|file| *file == *name))
}

#[test]
fn faults_export_goes_on_at_the_good_holder_from_where_the_damaged_one_stopped() {
    let outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().to_owned();
    // Many messages, and an extent that is not all in the first.
    let size_bytes = 4 << 20;
    let saver = Saver { steps: Some(2), size_bytes, way: "folder", ..Saver::new("exported", &folder) };
    let job = outlast.submit(&saver.spec());
    outlast.wait_success(&job);
    // Whichever is asked first.
    for node in ["n1", "n2"] {
        let path = wait_for("a copy at each node", || shard_of(&outlast, node, &job));
        let good = fs::read(&path).expect("a shard");
        change(&path, |bytes| bytes[70_000] ^= 1);
        check_bytes(&outlast, &job, size_bytes);
        fs::remove_dir_all(folder.join(format!("export-of-{job}"))).expect("exported");
        outlast.run(&["checkpoint", "verify", &job, "--deep"]);
        wait_for("the copy to be good again", || {
            (fs::read(&path).is_ok_and(|bytes| bytes == good)).then_some(())
        });
    }
    check_all(&outlast, &job, &saver);
    outlast.assert_nothing_left();
}

type Damage = fn(&mut Vec<u8>);

fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("a file");
    how(&mut bytes);
    fs::write(path, &bytes).expect("written");
    bytes
}

#[test]
fn faults_flipped_bits_cut_and_grown_files_are_repaired_by_the_good_holder() {
    let mut outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().to_owned();
    let saver = Saver { steps: Some(3), ..Saver::new("rotten", &folder) };
    let job = outlast.submit(&saver.spec());
    outlast.wait_success(&job);
    let damages: [(&str, Damage); 4] = [
        ("its first bit", |bytes| bytes[0] ^= 1),
        ("its last bit", |bytes| *bytes.last_mut().expect("not empty") ^= 0x80),
        ("its end cut off", |bytes| bytes.truncate(bytes.len() - 1)),
        ("a byte too many", |bytes| bytes.push(0)),
    ];
    for (what, damage) in damages {
        let path = wait_for("the shard", || shard_of(&outlast, "n1", &job));
        change(&path, damage);
        let deep = outlast.json(&["checkpoint", "verify", &job, "--deep"]);
        // The agent's own look may have been first: then all is good already.
        let results = deep["results"].as_array().expect("results");
        let is_bad = |one: &&Value| one["outcome"] != "ok" && one["repair"] != "repaired";
        assert!(!results.iter().any(|one| is_bad(&one)), "{what}: {deep}");
        let is_whole = || {
            let newest = checkpoints(&outlast, &job).pop()?;
            (newest["durability_now"] == "replicated" && shard_of(&outlast, "n1", &job).is_some())
                .then_some(())
        };
        wait_for("two copies", is_whole);
        outlast.ok(&["checkpoint", "verify", &job, "--deep"]);
    }
    // Hashes are made again from the bytes by whoever reads them, the seal by the log when the agent comes back.
    let path = shard_of(&outlast, "n1", &job).expect("the shard");
    let beside = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
    let hashes = change(&beside("ext"), |bytes| bytes[40] ^= 2);
    outlast.ok(&["checkpoint", "verify", &job, "--deep"]);
    assert_ne!(fs::read(beside("ext")).expect("there"), hashes, "made again");
    let seal = change(&beside("seal"), |bytes| {
        let at = bytes.windows(7).position(|word| word == b"\"step\":").expect("a step");
        bytes[at + 7] ^= 1;
    });
    outlast.cluster.agents[0].kill();
    outlast.cluster.agents[0].start().expect("it starts again");
    wait_for("the seal to be made anew", || fs::read(beside("seal")).ok().filter(|found| *found != seal));
    check_all(&outlast, &job, &saver);
    outlast.assert_nothing_left();
}
