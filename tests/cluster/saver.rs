//! A worker that does nothing but save, and whose state is a known function of rank and step: whatever is restored or
//! exported can be computed anew and compared bit for bit. And what must be true of its checkpoints afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outlast_worker::{SealOutcome, Worker};
use serde_json::{Value, json};

use super::harness::{Job, Outlast, wait_for};

/// Small, so that a test is fast; odd, so that no page and no extent is full by chance.
pub(crate) const STATE_BYTES: usize = 40_003;

/// What a rank's part of a checkpoint holds.
fn state(rank: u64, step: u64, size_bytes: usize) -> Vec<u8> {
    let mut x =
        (rank + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (step + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    while bytes.len() < size_bytes {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(size_bytes);
    bytes
}

/// How a saver is to run; it ends when the stop file is there, or after so many steps.
pub(crate) struct Saver<'a> {
    pub(crate) name: &'a str,
    pub(crate) workers: u32,
    pub(crate) durability: &'a str,
    pub(crate) steps: Option<u64>,
    pub(crate) size_bytes: usize,
    /// `memory`, `folder`, or `both` in turns; `outside`: a folder that is not on the agent's disk.
    pub(crate) way: &'a str,
    /// For the first attempt only.
    pub(crate) failpoint: Option<&'a str>,
    /// Where it leaves what it found wrong; the stop file is here too.
    pub(crate) folder: &'a Path,
}

impl<'a> Saver<'a> {
    pub(crate) fn new(name: &'a str, folder: &'a Path) -> Self {
        let (durability, way, size_bytes) = ("replicated", "both", STATE_BYTES);
        Self { name, workers: 1, durability, steps: None, size_bytes, way, failpoint: None, folder }
    }

    pub(crate) fn spec(&self) -> Value {
        let exe = std::env::current_exe().expect("the test has a path");
        let script = format!(
            "case $OUTLAST_ATTEMPT in *.1) export OUTLAST_FAILPOINT=\"$SAVER_FAILPOINT\";; esac
             exec {} --exact cluster::saver::saver_program --ignored --nocapture",
            exe.display()
        );
        let mut env = json!({
            "SAVER_FOLDER": self.folder, "SAVER_NAME": self.name, "SAVER_WAY": self.way,
            "SAVER_BYTES": self.size_bytes.to_string(),
        });
        if let Some(steps) = self.steps {
            env["SAVER_STEPS"] = steps.to_string().into();
        }
        if let Some(failpoint) = self.failpoint {
            env["SAVER_FAILPOINT"] = failpoint.into();
        }
        json!({
            "name": self.name, "script": script, "workers": self.workers, "env": env,
            "resources": {"cpus": 0.1},
            "checkpoint": {"every": "1h", "keep": 1, "durability": self.durability},
            "recovery": {"max_user_failures": 1000, "stop_grace": "1s"},
        })
    }
}

pub(crate) fn stop_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.stop"))
}

/// Where a saver leaves why its latest refused save was refused.
pub(crate) fn refusal_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.refused"))
}

/// The worker's side of `Saver`.
struct Program {
    worker: Worker,
    folder: PathBuf,
    name: String,
    size_bytes: usize,
    way: String,
}

/// The program of these jobs; not a test of anything.
#[test]
#[ignore = "the program that the cluster tests start as a worker"]
fn saver_program() {
    let variable = |name: &str| std::env::var(name).expect("started by a test");
    let program = Program {
        worker: Worker::connect().expect("the agent answers").expect("this is a worker"),
        folder: PathBuf::from(variable("SAVER_FOLDER")),
        name: variable("SAVER_NAME"),
        size_bytes: variable("SAVER_BYTES").parse().expect("a number"),
        way: variable("SAVER_WAY"),
    };
    let steps = std::env::var("SAVER_STEPS").map_or(u64::MAX, |steps| steps.parse().expect("a number"));
    program.check_restored();
    for step in program.worker.restore_step() + 1..=steps {
        if program.is_stopped() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
        let current = program.worker.report(step, &[]);
        match program.save(step) {
            Ok(checkpoint) => println!("step {step} {}", program.wait_sealed(&checkpoint)),
            Err(error) => {
                println!("step {step} is not saved: {error:#}");
                fs::write(refusal_file(&program.folder, &program.name), format!("{error:#}"))
                    .expect("written");
            }
        }
        // An attempt that is over leaves; not before it has tried to save, so that this is tested, too.
        current.expect("this attempt is current");
    }
}

impl Program {
    fn is_stopped(&self) -> bool {
        stop_file(&self.folder, &self.name).exists()
    }

    fn state(&self, step: u64) -> Vec<u8> {
        state(u64::from(self.worker.rank()), step, self.size_bytes)
    }

    fn check_restored(&self) {
        let Some(dir) = self.worker.restore_dir() else { return };
        let (rank, step) = (self.worker.rank(), self.worker.restore_step());
        let found = fs::read(dir.join("state")).unwrap_or_default();
        if found != self.state(step) {
            let text = format!("rank {rank} restored {} other bytes than those of step {step}", found.len());
            fs::write(self.folder.join(format!("{}.wrong", self.name)), text).expect("written");
        }
    }

    /// The checkpoint's name. A save that fails is left out: training goes on.
    fn save(&self, step: u64) -> anyhow::Result<String> {
        let bytes = self.state(step);
        let from_memory = self.way == "memory" || (self.way == "both" && step % 2 == 1);
        if from_memory {
            let staged = self.worker.save_parts(step, &[("state", &bytes)])?;
            return Ok(self.worker.wait_saved(&staged, Duration::from_secs(30))?.checkpoint);
        }
        let below = if self.way == "outside" { &self.folder } else { self.worker.checkpoint_dir() };
        let dir = below.join(format!("step-{step}"));
        let saved = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("state"), &bytes))
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.worker.save(step, &dir)?));
        let _ = fs::remove_dir_all(&dir);
        Ok(saved?.checkpoint)
    }

    /// Waits for the seal, so that the ranks go in step.
    fn wait_sealed(&self, checkpoint: &str) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && !self.is_stopped() {
            match self.worker.wait_sealed(checkpoint, Duration::from_millis(500)) {
                Ok(SealOutcome::Sealed) => return "is sealed".to_owned(),
                Ok(SealOutcome::GivenUp { reason }) => return format!("is given up: {reason}"),
                Err(_) => {}
            }
        }
        "is not decided".to_owned()
    }
}

/// The checkpoints of a job, oldest first.
pub(crate) fn checkpoints(outlast: &Outlast, job: &str) -> Vec<Value> {
    let output = outlast.run(&["checkpoint", "list", job, "-o", "json"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    listed["checkpoints"].as_array().cloned().unwrap_or_default()
}

/// Each checkpoint that the log knows of, with its state.
fn states(outlast: &Outlast, job: &str) -> String {
    let one = |one: &Value| format!("{} {}", one["id"], one["state"]);
    checkpoints(outlast, job).iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The newest sealed step; zero where there is none, or nobody answers now.
pub(crate) fn sealed_step(outlast: &Outlast, job: &str) -> u64 {
    let all = checkpoints(outlast, job);
    let sealed = all.iter().filter(|one| one["state"] == "sealed");
    sealed.filter_map(|one| one["step"].as_u64()).max().unwrap_or(0)
}

pub(crate) fn wait_next_seal(outlast: &Outlast, job: &str, after: u64) -> u64 {
    let what = format!("a seal after step {after} of {job}");
    wait_for(&what, || Some(sealed_step(outlast, job)).filter(|step| *step > after))
}

/// What must be true when the trouble is over and the job has ended.
pub(crate) fn check_all(outlast: &Outlast, job: &str, saver: &Saver<'_>) {
    let wrong = fs::read_to_string(saver.folder.join(format!("{}.wrong", saver.name))).ok();
    assert_eq!(wrong, None, "a restore gave other bytes");
    check_order(outlast, job);
    outlast.ok(&["checkpoint", "verify", job, "--deep"]);
    check_bytes(outlast, job, saver.size_bytes);
    let mut told = Vec::new();
    wait_for("the disks to hold what is sealed and nothing else", || {
        let left = orphans(outlast, job);
        if left != told {
            println!("still there: {left:#?} of {}", states(outlast, job));
            told.clone_from(&left);
        }
        left.is_empty().then_some(())
    });
}

/// Attempts and the steps of each only grow, and no attempt sealed anything after its end.
fn check_order(outlast: &Outlast, job: &str) {
    let record = Job(outlast.json(&["job", "show", job]));
    record.assert_attempts_in_order();
    let sealed: Vec<Value> =
        checkpoints(outlast, job).into_iter().filter(|one| one["sealed_at"].is_string()).collect();
    let place = |one: &Value| {
        let attempt = one["attempt"].as_str().and_then(|id| id.rsplit_once('.')?.1.parse::<u64>().ok());
        (attempt.expect("an attempt"), one["step"].as_u64().expect("a step"))
    };
    let places: Vec<(u64, u64)> = sealed.iter().map(place).collect();
    assert!(places.is_sorted(), "attempts and steps of sealed checkpoints only grow: {places:?}");
    for attempt in record.attempts() {
        assert_ne!(attempt["cause"], "restore_failed", "nothing was deleted under a restore: {attempt}");
        let Some(ended) = attempt["ended_at"].as_str() else { continue };
        let of_it = sealed.iter().filter(|one| one["attempt"] == attempt["id"]);
        for one in of_it {
            assert!(
                one["sealed_at"].as_str() <= Some(ended),
                "sealed after its attempt's end: {one} {attempt}"
            );
        }
    }
}

/// The newest sealed checkpoint, exported and compared with what the program must have saved.
pub(crate) fn check_bytes(outlast: &Outlast, job: &str, size_bytes: usize) {
    let to = outlast.cluster.folder().join(format!("export-of-{job}"));
    let told = outlast.json(&["checkpoint", "export", job, "--to", &to.to_string_lossy()]);
    let step = told["step"].as_u64().expect("a step");
    assert!(step > 0, "{told}");
    let ranks = fs::read_dir(&to).expect("exported").flatten().filter(|entry| entry.path().is_dir());
    let mut count = 0;
    for entry in ranks {
        let name = entry.file_name().to_string_lossy().into_owned();
        let rank: u64 = name.strip_prefix("rank-").expect("a rank's folder").parse().expect("a number");
        let found = fs::read(entry.path().join("state")).expect("a state");
        assert!(found == state(rank, step, size_bytes), "rank {rank} of step {step} is not what was saved");
        count += 1;
    }
    assert!(count > 0, "{told}");
}

/// Files on the nodes' disks that belong to no sealed checkpoint of the job, or to nothing at all.
fn orphans(outlast: &Outlast, job: &str) -> Vec<PathBuf> {
    let all = checkpoints(outlast, job);
    let kept = |seq: &str| {
        all.iter().any(|one| one["id"] == *seq && (one["state"] == "sealed" || one["state"] == "quarantined"))
    };
    let mut left = Vec::new();
    for agent in &outlast.cluster.agents {
        let shards = agent.folder.join("shards");
        left.extend(files(&shards.join("tmp")));
        let of_job = fs::read_dir(shards.join("blobs")).into_iter().flatten().flatten();
        let of_job =
            of_job.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{job}.")));
        for file in of_job.flat_map(|entry| files(&entry.path())) {
            let seq = file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            if !kept(&seq.unwrap_or_default()) {
                left.push(file);
            }
        }
    }
    left
}

/// Files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}
