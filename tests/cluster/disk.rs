//! Full disks. Needs root for a small tmpfs of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use outlast_local::Builder;

use super::harness::{Job, Outlast, digest, digits, exe, is_root, shell, undisturbed_digest, wait_for};

/// A small file system, gone when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("the mount point can be made");
        let options = format!("size={size},mode=0700");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "outlast-test"]).arg(path).status();
        assert!(status.expect("mount runs").success(), "the tmpfs must mount");
        Self(path.to_path_buf())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: processes that are still ending may hold files.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes room until `left_kib` are left of it; none of the rest where that is zero. Gone with the file.
pub(crate) fn fill(disk: &Path, left_kib: u64) -> PathBuf {
    let filler = disk.join("filler");
    let of = format!("of={}", filler.display());
    // It ends with "no space left": that is the point.
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=4k", "status=none", &of]).status();
    let file = std::fs::File::options().write(true).open(&filler).expect("dd made it");
    let bytes = file.metadata().expect("ours").len();
    file.set_len(bytes.saturating_sub(left_kib << 10)).expect("shortened");
    filler
}

fn is_member(folder: &Path) -> bool {
    folder.join("identity").exists() && !folder.join("quarantine").exists()
}

/// What `cluster status` says of the third coordinator, whatever id it got.
fn third_member(outlast: &Outlast) -> Option<serde_json::Value> {
    let output = outlast.run(&["cluster", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let address = outlast.cluster.coordinators[2].address.as_str();
    status["coordinators"].as_array()?.iter().find(|known| known["address"] == address).cloned()
}

#[test]
fn disk_full_at_the_leader_refuses_commands_until_there_is_room() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("c1"), "64m");
    let outlast = Outlast::start_with(Builder::new(exe()).coordinators(1).agents(1).folder(folder.path()));
    let before = outlast.submit(&shell("before", "true"));
    outlast.wait_success(&before);
    // Below the floor of 5 %, but enough for the log itself.
    let filler = fill(&disk.0, 1_024);
    let refused = wait_for("a refusal", || {
        let output = outlast.run(&["job", "run", "--detach", "--timeout", "2s", "--", "true"]);
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert!(refused.contains("make room"), "{refused}");
    assert_eq!(outlast.json(&["job", "show", &before])["state"], "succeeded", "it still answers");
    assert!(outlast.cluster.coordinators[0].pid().is_some() && is_member(&disk.0));

    std::fs::remove_file(&filler).expect("the filler goes");
    let after = wait_for("a submission to be taken", || {
        let output = outlast.run(&["job", "run", "--detach", "-o", "json", "--", "true"]);
        output.status.success().then_some(output)
    });
    let after: serde_json::Value = serde_json::from_slice(&after.stdout).expect("JSON");
    outlast.wait_success(after["job_id"].as_str().expect("an id"));
    outlast.assert_nothing_left();
    drop(disk);
}

/// One that leads on refuses every command of the cluster for as long as nobody makes room.
#[test]
fn disk_full_at_a_leader_of_three_hands_the_leadership_to_one_with_room() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disks = ["c1", "c2", "c3"].map(|name| SmallDisk::mount(&folder.path().join(name), "64m"));
    let outlast = Outlast::start_with(Builder::new(exe()).coordinators(3).agents(1).folder(folder.path()));
    let old = outlast.leader();
    let filler = fill(&disks[old].0, 1_024);
    wait_for("another leader", || (outlast.leader() != old).then_some(()));
    let job = wait_for("a submission to be taken", || {
        let output = outlast.run(&["job", "run", "--detach", "-o", "json", "--", "true"]);
        output.status.success().then_some(output)
    });
    let job: serde_json::Value = serde_json::from_slice(&job.stdout).expect("JSON");
    outlast.wait_success(job["job_id"].as_str().expect("an id"));
    let told = outlast.cluster.coordinators[old].log_tail(50);
    assert!(told.contains("gives the leadership up") && told.contains("make room"), "{told}");
    // It follows, and leads again where it must.
    std::fs::remove_file(&filler).expect("the filler goes");
    wait_for("it to have room", || {
        outlast.cluster.coordinators[old].log_tail(50).contains("has room again").then_some(())
    });
    let after = outlast.submit(&shell("after", "true"));
    outlast.wait_success(&after);
    outlast.assert_nothing_left();
    drop(disks);
}

#[test]
fn disk_full_under_a_log_ends_the_coordinator_and_it_comes_back_with_its_data() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("c3"), "64m");
    let mut outlast =
        Outlast::start_with(Builder::new(exe()).coordinators(3).agents(1).folder(folder.path()));
    if outlast.leader() == 2 {
        // A leader would refuse before its log grows.
        outlast.cluster.coordinators[2].kill();
        wait_for("another leader", || (outlast.leader() != 2).then_some(()));
        outlast.cluster.coordinators[2].start().expect("it starts again");
    }
    let before = third_member(&outlast).expect("a member");
    let filler = fill(&disk.0, 0);
    let mut acknowledged = Vec::new();
    let ended = wait_for("the coordinator to end", || {
        acknowledged.push(outlast.submit(&shell(&format!("job{}", acknowledged.len()), "true")));
        outlast.cluster.coordinators[2].exit_signal()
    });
    assert_eq!(ended, rustix::process::Signal::ABORT.as_raw());
    let told = outlast.cluster.coordinators[2].log_tail(20);
    assert!(told.contains("cannot go on") && told.contains("make room"), "{told}");
    // The other two go on.
    acknowledged.push(outlast.submit(&shell("without-it", "true")));
    outlast.wait_success(acknowledged.last().expect("one"));

    // Started without room it says so, and throws nothing away.
    outlast.cluster.coordinators[2].start().expect("the process starts");
    let code = wait_for("it to give up", || outlast.cluster.coordinators[2].exit_code());
    assert_eq!(code, 1, "another start may help: {}", outlast.cluster.coordinators[2].log_tail(20));
    assert!(outlast.cluster.coordinators[2].log_tail(20).to_lowercase().contains("no space"));
    assert!(is_member(&disk.0), "a full disk is no damage");

    std::fs::remove_file(&filler).expect("the filler goes");
    outlast.cluster.coordinators[2].start().expect("it starts again");
    let back = wait_for("it to have caught up", || {
        let third = &mut outlast.cluster.coordinators[2];
        assert!(third.is_running(), "{}", third.log_tail(20));
        third_member(&outlast).filter(|third| third["reachable"] == true && third["lag"] == 0)
    });
    assert_eq!((&back["id"], &back["role"]), (&before["id"], &"follower".into()), "with its old log: {back}");
    for job in &acknowledged {
        outlast.wait_success(job);
    }
    outlast.assert_nothing_left();
    drop(disk);
}

#[test]
fn disk_full_at_the_agent_skips_checkpoints_but_training_goes_on() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("n1"), "24m");
    let builder = Builder::new(exe()).coordinators(1).agents(1).folder(folder.path());
    let outlast = Outlast::start_with(builder);
    let result = folder.path().join("result.json");
    let job = outlast.submit(&digits("digits", 1, 20, &result));
    outlast.wait_job(&job, "a sealed checkpoint", |job| !job.sealed().is_empty());
    let filler = folder.path().join("n1/filler");
    let of = format!("of={}", filler.display());
    // It ends with "no space left": that is the point.
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k", "status=none", &of]).status();
    // Long enough for several checkpoints that cannot be written.
    std::thread::sleep(std::time::Duration::from_secs(3));
    std::fs::remove_file(&filler).expect("the filler goes");
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "a full disk must not end the training: {}", done.0);
    assert_eq!(digest(&result), undisturbed_digest(1, folder.path()));
    outlast.assert_nothing_left();
    drop(disk);
}

#[test]
fn disk_full_at_an_agent_keeps_new_work_away_and_the_node_says_why() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("n1"), "24m");
    let builder = Builder::new(exe()).coordinators(1).agents(2).folder(folder.path());
    let outlast = Outlast::start_with(builder);
    let filler = folder.path().join("n1/filler");
    let of = format!("of={}", filler.display());
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k", "status=none", &of]).status();
    let node = wait_for("the node to say so", || {
        let node = outlast.json(&["node", "show", "n1"]);
        (node["condition"] == "suspect").then_some(node)
    });
    let reason = node["suspect_reason"].as_str().unwrap_or_default();
    assert!(reason.contains("its disk is full"), "{node}");
    assert!(outlast.ok(&["node", "show", "n1"]).contains(reason));
    outlast.ok(&["node", "cordon", "n2"]);
    let job = outlast.submit(&shell("patient", "true"));
    wait_for("the reason", || {
        outlast.ok(&["job", "explain", &job]).contains("n1: its disk is full").then_some(())
    });
    outlast.ok(&["node", "uncordon", "n2"]);
    let done = outlast.wait_success(&job);
    assert_eq!(done.node_of(0), "n2");

    std::fs::remove_file(&filler).expect("the filler goes");
    wait_for("the node to be well", || {
        (outlast.json(&["node", "show", "n1"])["condition"] == "ready").then_some(())
    });
    outlast.ok(&["node", "cordon", "n2"]);
    let job = outlast.submit(&shell("next", "exec sleep 1000"));
    assert_eq!(outlast.wait_job(&job, "the job to run", Job::is_running).node_of(0), "n1");
    outlast.assert_nothing_left();
    drop(disk);
}
