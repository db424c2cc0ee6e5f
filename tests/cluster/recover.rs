//! The cluster's own data: lost, and brought back. Everything here is killed with `kill -9` first.

use std::path::{Path, PathBuf};

use outlast_local::{Builder, Found, LocalCluster};
use serde_json::Value;

use super::harness::{Job, Outlast, digest, digits, exe, undisturbed_digest, wait_for};
use super::saver::{Saver, checkpoints, files, sealed_step, stop_file, wait_next_seal};

/// A training job that outlives its cluster's disasters: slow, and with room for the checkpoints of the lost time.
fn training(result: &Path) -> Value {
    let mut spec = digits("digits", 2, 100, result);
    spec["checkpoint"] = serde_json::json!({"every": "500ms", "keep": 50});
    spec
}

fn running_with_a_seal(job: &Job) -> bool {
    job.is_running() && !job.sealed().is_empty()
}

/// `j1/0@2.3` → 2
fn generation(attempt: &Value) -> u64 {
    let id = attempt["id"].as_str().unwrap_or_default();
    let token = id.split_once('@').map_or("", |(_, token)| token);
    token.split('.').next().and_then(|generation| generation.parse().ok()).unwrap_or(0)
}

fn workers(cluster: &LocalCluster) -> Vec<Found> {
    let all = cluster.processes().into_iter();
    all.filter(|found| found.command.ends_with("example digits")).collect()
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The next attempt: of generation 2, from a sealed checkpoint, and alone.
fn goes_on(outlast: &Outlast, job: &str, before: &Job) -> Job {
    let after = outlast.wait_job(job, "the next generation's attempt to run", |job| {
        generation(job.newest()) == 2 && job.is_running()
    });
    assert!(after.number() > before.number(), "{}", after.0);
    assert!(after.newest()["restore_step"].as_u64() > Some(0), "from a sealed checkpoint: {}", after.0);
    let workers = workers(&outlast.cluster);
    assert!(
        workers.len() <= 2,
        "the workers of the old generation are stopped first: {workers:?} {}",
        after.0
    );
    after
}

fn finishes(outlast: &Outlast, job: &str, result: &Path) {
    let done = outlast.wait_success(job);
    done.assert_attempts_in_order();
    let recovered = done.attempts().iter().find(|attempt| attempt["cause"] == "cluster_recovered");
    assert_eq!(recovered.map(generation), Some(1), "{}", done.0);
    assert_eq!(done.0["groups"][0]["user_failures_since_progress"], 0, "{}", done.0);
    assert_eq!(digest(result), undisturbed_digest(2, outlast.cluster.folder()));
}

#[test]
fn recover_from_a_backup_when_every_coordinator_and_its_folder_are_gone() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&training(&result));
    let before = outlast.wait_job(&job, "a sealed checkpoint", running_with_a_seal);
    let file = outlast.cluster.folder().join("cluster.backup");
    let backup = outlast.json(&["cluster", "backup", &path(&file)]);
    assert_eq!(backup["size_bytes"].as_u64(), file.metadata().ok().map(|meta| meta.len()), "{backup}");
    let old = backup["cluster_id"].as_str().expect("a name").to_owned();
    for coordinator in &mut outlast.cluster.coordinators {
        coordinator.kill();
        std::fs::remove_dir_all(&coordinator.folder).expect("removable");
    }
    let first = &outlast.cluster.coordinators[0];
    let (folder, address) = (path(&first.folder), first.address.clone());
    let restore = ["cluster", "restore", &path(&file), "--data-dir", &folder, "--address", &address];
    let unasked = outlast.run(&restore);
    assert_eq!(unasked.status.code(), Some(2), "it asks first");
    let told = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(told.contains("all that happened since then is lost"), "{told}");
    let made = outlast.json(&[&restore[..], &["--yes"]].concat());
    assert_eq!(made["generation"], 2, "{made}");
    assert_ne!(made["cluster_id"], old.as_str(), "{made}");
    outlast.cluster.coordinators[0].start().expect("it starts");
    goes_on(&outlast, &job, &before);
    let status = outlast.json(&["cluster", "status"]);
    assert_eq!((&status["cluster_id"], &status["nodes_ready"]), (&made["cluster_id"], &Value::from(2)));
    finishes(&outlast, &job, &result);
    outlast.assert_nothing_left();
}

#[test]
fn recover_from_one_survivor_of_three_and_two_new_ones_join() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&training(&result));
    let before = outlast.wait_job(&job, "a sealed checkpoint", running_with_a_seal);
    let first = &outlast.cluster.coordinators[0];
    let (folder, address) = (path(&first.folder), first.address.clone());
    let recover = ["cluster", "recover", "--data-dir", &folder, "--address", &address];
    let held = outlast.run(&[&recover[..], &["--yes"]].concat());
    assert_eq!(held.status.code(), Some(4), "it still runs: {}", String::from_utf8_lossy(&held.stderr));
    for coordinator in &mut outlast.cluster.coordinators {
        coordinator.kill();
    }
    for lost in &outlast.cluster.coordinators[1..] {
        std::fs::remove_dir_all(&lost.folder).expect("removable");
    }
    let unasked = outlast.run(&recover);
    let told = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(
        unasked.status.code() == Some(2) && told.contains("what only the other coordinators had"),
        "{told}"
    );
    let made = outlast.json(&[&recover[..], &["--yes"]].concat());
    let kept = PathBuf::from(made["kept_in"].as_str().expect("the old folder's place"));
    assert!(kept.join("identity").exists(), "the old folder is kept: {made}");
    for coordinator in &mut outlast.cluster.coordinators {
        coordinator.start().expect("it starts");
    }
    goes_on(&outlast, &job, &before);
    wait_for("three voters", || {
        let output = outlast.run(&["cluster", "status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let members = status["coordinators"].as_array()?.iter();
        let votes = |one: &&Value| one["role"] == "leader" || one["role"] == "follower";
        (members.filter(votes).count() == 3).then_some(())
    });
    finishes(&outlast, &job, &result);
    outlast.assert_nothing_left();
}

/// The worst of them: two of the three old coordinators come back, and are a majority among themselves.
#[test]
fn recover_and_the_old_majority_comes_back_to_find_nobody() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&training(&result));
    let before = outlast.wait_job(&job, "a sealed checkpoint", running_with_a_seal);
    for coordinator in &mut outlast.cluster.coordinators {
        coordinator.kill();
    }
    let first = &outlast.cluster.coordinators[0];
    let (folder, new, old) =
        (path(&first.folder), first.address.clone(), outlast.cluster.coordinators[1].address.clone());
    let made = outlast.json(&["cluster", "recover", "--data-dir", &folder, "--address", &new, "--yes"]);
    outlast.cluster.coordinators[0].start().expect("it starts");
    goes_on(&outlast, &job, &before);
    for coordinator in &mut outlast.cluster.coordinators[1..] {
        coordinator.start().expect("it starts");
    }
    let of_old = |outlast: &Outlast| -> Option<Value> {
        let output = outlast.run(&["cluster", "status", "-o", "json", "--coordinator", &old]);
        // Until it has opened its folder it says that it belongs to none.
        serde_json::from_slice(&output.stdout).ok().filter(|status: &Value| status["cluster_id"] != "")
    };
    // They elect a leader, and lose every node: their agents are somewhere else, and stay there.
    wait_for("the old majority to lose its nodes", || {
        let status = of_old(&outlast)?;
        assert_eq!(status["generation"], 1, "it is the old one: {status}");
        (status["nodes_lost"] == 2 && status["nodes_ready"] == 0).then_some(())
    });
    let status = outlast.json(&["cluster", "status", "--coordinator", &new]);
    assert_eq!(status["cluster_id"], made["cluster_id"], "{status}");
    assert_eq!(status["nodes_ready"], 2, "{status}");
    let members = status["coordinators"].as_array().expect("members").iter();
    assert_eq!(members.filter(|one| one["role"] != "removed").count(), 1, "none came back: {status}");
    assert!(outlast.cluster.agents.iter_mut().all(|agent| agent.is_running()), "no agent gave up");
    for coordinator in &mut outlast.cluster.coordinators[1..] {
        coordinator.kill();
    }
    finishes(&outlast, &job, &result);
    outlast.assert_nothing_left();
}

/// Every coordinator, with its folder.
fn lose_coordinators(outlast: &mut Outlast) {
    for coordinator in &mut outlast.cluster.coordinators {
        coordinator.kill();
        std::fs::remove_dir_all(&coordinator.folder).expect("removable");
    }
}

/// The next attempt, of the generation after: from the step that `restore` told of.
fn goes_on_from(outlast: &Outlast, job: &str, step: &Value) -> Job {
    let after = outlast.wait_job(job, "the next generation's attempt to run", |job| {
        generation(job.newest()) == 2 && job.is_running()
    });
    assert_eq!(&after.newest()["restore_step"], step, "{}", after.0);
    assert!(step.as_u64() > Some(0), "from a sealed checkpoint");
    after
}

fn is_stored(checkpoint: &Value) -> bool {
    checkpoint["state"] == "sealed" && checkpoint["durability_now"] == "stored"
}

#[test]
fn recover_from_the_bucket_when_every_machine_is_gone() {
    let bucket = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", bucket.path().display());
    let builder = Builder::new(exe()).coordinators(3).agents(2);
    let mut outlast = Outlast::start_with(builder.agent_args(&["--cpus", "4", "--store", &url]));
    let result = outlast.cluster.folder().join("result.json");
    let mut spec = training(&result);
    spec["checkpoint"] = serde_json::json!({"every": "500ms", "keep": 3, "durability": "stored"});
    // The program is the bundle's: without it no attempt could start.
    let workdir = outlast.cluster.folder().join("program");
    std::fs::create_dir(&workdir).expect("made");
    std::fs::write(workdir.join("run"), format!("exec '{}' example digits\n", exe().display()))
        .expect("written");
    spec["workdir"] = path(&workdir).into();
    spec["command"] = serde_json::json!(["sh", "run"]);
    let job = outlast.submit(&spec);
    outlast.wait_job(&job, "a checkpoint in the bucket", |job| {
        job.is_running() && job.0["checkpoints"].as_array().is_some_and(|all| all.iter().any(is_stored))
    });
    lose_coordinators(&mut outlast);
    for agent in &mut outlast.cluster.agents {
        agent.kill_tree();
        std::fs::remove_dir_all(&agent.folder).expect("the disk is lost");
    }
    let first = &outlast.cluster.coordinators[0];
    let (folder, address) = (path(&first.folder), first.address.clone());
    let restore = ["cluster", "restore", "--from-store", &url, "--data-dir", &folder, "--address", &address];
    let unasked = outlast.run(&restore);
    let told = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(unasked.status.code() == Some(2) && told.contains("goes on from step"), "it asks first: {told}");
    assert!(!first.folder.exists(), "nothing is made before");
    let empty = format!("file://{}", outlast.cluster.folder().join("program").display());
    let nothing = outlast.run(&[&["cluster", "restore", "--from-store", &empty][..], &restore[4..]].concat());
    let told = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(nothing.status.code() == Some(3) && told.contains("with its prefix"), "{told}");
    let made = outlast.json(&[&restore[..], &["--yes"]].concat());
    assert_eq!((&made["generation"], &made["jobs"][0]["stored"]), (&2.into(), &true.into()), "{made}");
    outlast.cluster.coordinators[0].start().expect("it starts");
    for agent in &mut outlast.cluster.agents {
        agent.start().expect("starts with an empty disk");
    }
    goes_on_from(&outlast, &job, &made["jobs"][0]["step"]);
    // What the new cluster puts there is of the same lineage, and a third one would go on from both.
    outlast.wait_job(&job, "the next generation's checkpoint in the bucket", |job| {
        let all = job.0["checkpoints"].as_array().map_or(&[][..], Vec::as_slice);
        all.iter().any(|one| is_stored(one) && one["attempt"].as_str().is_some_and(|id| id.contains("@2.")))
    });
    let third = path(&outlast.cluster.folder().join("third"));
    let restore = ["cluster", "restore", "--from-store", &url, "--data-dir", &third, "--address", &address];
    assert_eq!(outlast.json(&[&restore[..], &["--yes"]].concat())["generation"], 3);
    outlast.wait_success(&job).assert_attempts_in_order();
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn recover_from_the_seals_that_agents_keep_beside_the_bytes() {
    let mut outlast = Outlast::start(3, 2);
    let result = outlast.cluster.folder().join("result.json");
    let job = outlast.submit(&training(&result));
    let other = outlast.submit(&digits("over", 1, 0, &outlast.cluster.folder().join("over.json")));
    outlast.wait_success(&other);
    let before = outlast.wait_job(&job, "a sealed checkpoint", running_with_a_seal);
    lose_coordinators(&mut outlast);
    let first = &outlast.cluster.coordinators[0];
    let (folder, address) = (path(&first.folder), first.address.clone());
    let agents: Vec<String> =
        outlast.cluster.agents.iter().map(|agent| format!("http://{}", agent.address)).collect();
    let restore = |agents: &str, more: &[&str]| {
        let restore =
            ["cluster", "restore", "--from-agents", agents, "--data-dir", &folder, "--address", &address];
        outlast.run(&[&restore[..], more].concat())
    };
    let unreachable = restore(&format!("{},127.0.0.1:9", agents[0]), &["--yes"]);
    let told = String::from_utf8_lossy(&unreachable.stderr).into_owned();
    assert!(unreachable.status.code() == Some(6) && told.contains("leave it out"), "{told}");
    let unknown = restore(&agents.join(","), &["--ended", "nobody", "--yes"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", String::from_utf8_lossy(&unknown.stderr));
    let unasked = restore(&agents.join(","), &[]);
    let told = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(unasked.status.code() == Some(2) && told.contains("whether a job had ended"), "{told}");
    assert!(!first.folder.exists(), "nothing is made before");
    let made = restore(&agents.join(","), &["--ended", "over", "--yes", "-o", "json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let found =
        made["jobs"].as_array().and_then(|jobs| jobs.iter().find(|found| found["job_id"] == job.as_str()));
    let found = found.unwrap_or_else(|| panic!("{made}")).clone();
    assert!(found["step"].as_u64() >= before.sealed().last().copied(), "{found}");
    assert_eq!(found["nodes"], serde_json::json!(["n1", "n2"]), "{found}");
    outlast.cluster.coordinators[0].start().expect("it starts");
    goes_on_from(&outlast, &job, &found["step"]);
    let over = outlast.wait_job(&other, "the job that had ended", |_| true);
    assert_eq!(over.state(), "cancelled", "{}", over.0);
    // What was built from seals knows of no worker: a node that comes back later than the first ends its own then.
    let all_back = |status: &Value| status["nodes_ready"] == 2;
    wait_for("both nodes to be back", || Some(outlast.json(&["cluster", "status"])).filter(all_back));
    wait_for("the old generation's workers to be stopped", || {
        (workers(&outlast.cluster).len() <= 2).then_some(())
    });
    let status = outlast.json(&["cluster", "status"]);
    assert_eq!((&status["cluster_id"], &status["nodes_ready"]), (&made["cluster_id"], &Value::from(2)));
    outlast.wait_success(&job).assert_attempts_in_order();
    assert_eq!(digest(&result), undisturbed_digest(2, outlast.cluster.folder()));
    outlast.assert_nothing_left();
}

#[test]
fn recover_retires_what_its_predecessor_sealed_from_every_disk() {
    let mut outlast = Outlast::start(1, 2);
    let folder = outlast.cluster.folder().to_owned();
    let saver = Saver::new("saver", &folder);
    let job = outlast.submit(&saver.spec());
    wait_next_seal(&outlast, &job, 0);
    lose_coordinators(&mut outlast);
    let first = &outlast.cluster.coordinators[0];
    let (data_dir, address) = (path(&first.folder), first.address.clone());
    let agents: Vec<&str> = outlast.cluster.agents.iter().map(|agent| agent.address.as_str()).collect();
    let from = ["cluster", "restore", "--from-agents", &agents.join(","), "--yes"];
    outlast.ok(&[&from[..], &["--data-dir", &data_dir, "--address", &address]].concat());
    outlast.cluster.coordinators[0].start().expect("it starts");
    let next = outlast.wait_job(&job, "the next generation's attempt", |job| {
        generation(job.newest()) == 2 && job.is_running()
    });
    let step = next.newest()["restore_step"].clone();
    let id_of = || {
        let all = checkpoints(&outlast, &job);
        all.iter().find(|one| one["step"] == step).and_then(|one| one["id"].as_str().map(str::to_owned))
    };
    let old = id_of().expect("the attempt was restored from it");
    let before = sealed_step(&outlast, &job);
    wait_for("sixty newer ones", || (sealed_step(&outlast, &job) > before + 60).then_some(()));
    assert_eq!(
        id_of().as_ref(),
        Some(&old),
        "it is kept as long as the attempt runs that was restored from it"
    );
    // Its record leaves the log in the same step as it is retired: nobody is told that it was.
    let is_worker =
        |found: &&Found| found.command.contains("saver_program") && !found.command.contains(" keeper ");
    for worker in outlast.cluster.processes().iter().filter(is_worker) {
        let pid = rustix::process::Pid::from_raw(worker.pid).expect("a pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    wait_for("its record to leave", || id_of().is_none().then_some(()));
    let bytes = || -> Vec<PathBuf> {
        let all = outlast.cluster.agents.iter().flat_map(|agent| files(&agent.folder.join("shards/blobs")));
        all.filter(|path| path.parent().is_some_and(|folder| folder.ends_with(&old))).collect()
    };
    wait_for("its bytes to go", || bytes().is_empty().then_some(()));
    std::fs::write(stop_file(&folder, "saver"), "").expect("written");
    outlast.wait_success(&job);
    outlast.ok(&["checkpoint", "verify", &job, "--deep"]);
    outlast.assert_nothing_left();
}

#[test]
fn recover_refuses_damaged_backups_and_verify_finds_a_flipped_byte() {
    let outlast = Outlast::start(1, 0);
    let folder = outlast.cluster.folder().to_owned();
    let file = folder.join("cluster.backup");
    outlast.ok(&["cluster", "backup", &path(&file)]);
    let good = std::fs::read(&file).expect("the backup");
    let target = folder.join("restored");
    let restore = |file: &Path| {
        outlast.run(&[
            "cluster",
            "restore",
            &path(file),
            "--data-dir",
            &path(&target),
            "--address",
            "127.0.0.1:9",
            "--yes",
        ])
    };
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for (bytes, why) in [(&flipped[..], "checksum"), (&good[..good.len() - 9], "ends early")] {
        let bad = folder.join("bad.backup");
        std::fs::write(&bad, bytes).expect("written");
        let refused = restore(&bad);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && told.contains(why), "{why}: {told}");
        assert!(!target.exists(), "nothing is made of a bad backup");
    }
    assert!(restore(&file).status.success());
    assert_eq!(restore(&file).status.code(), Some(4), "the folder is not empty any more");

    let verify = |dir: &Path| outlast.run(&["cluster", "verify", "--data-dir", &path(dir), "--deep"]);
    assert_eq!(verify(&outlast.cluster.coordinators[0].folder).status.code(), Some(4), "it is in use");
    assert_eq!(verify(&folder.join("none")).status.code(), Some(3));
    let whole = verify(&target);
    let table = String::from_utf8_lossy(&whole.stdout).into_owned();
    assert!(whole.status.success() && table.contains("snapshot"), "{table}");
    let snapshot = std::fs::read_dir(target.join("snapshots")).expect("listed").flatten().next();
    let snapshot = snapshot.expect("a snapshot").path();
    let mut bytes = std::fs::read(&snapshot).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, &bytes).expect("written");
    let damaged = verify(&target);
    let table = String::from_utf8_lossy(&damaged.stdout).into_owned();
    assert!(damaged.status.code() == Some(1) && table.contains("corrupt"), "{table}");
    assert!(snapshot.exists(), "a look changes nothing");
    outlast.assert_nothing_left();
}
