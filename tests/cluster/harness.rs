//! A cluster, a command line, and waiting for conditions.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use outlast_local::{Builder, LocalCluster};
use serde_json::Value;

/// How long anything may take on a busy machine before a test calls it broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The binary under test lies beside the test's own, one folder up.
pub(crate) fn exe() -> PathBuf {
    let own = std::env::current_exe().expect("the test has a path");
    let target = own.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let exe = target.join("outlast");
    assert!(
        exe.exists(),
        "{} is missing: run `cargo build -p outlast` first, or `cargo xtask test`",
        exe.display()
    );
    exe
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until `check` gives a value.
pub(crate) fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "waited {} s in vain for {what}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A plain HTTP/1 request, as curl would make it.
pub(crate) fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A number of a daemon's metrics, without labels.
pub(crate) fn metric(address: &str, name: &str) -> f64 {
    let text = get(address, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    line.unwrap_or_else(|| panic!("{address} has no metric {name}: {text}"))
}

/// A cluster with its command line. Everything ends when it is dropped.
pub(crate) struct Outlast {
    pub(crate) cluster: LocalCluster,
    runtime: tokio::runtime::Runtime,
}

impl Outlast {
    pub(crate) fn start(coordinators: usize, agents: usize) -> Self {
        Self::start_with(
            Builder::new(exe()).coordinators(coordinators).agents(agents).agent_args(&["--cpus", "4"]),
        )
    }

    pub(crate) fn start_with(builder: Builder) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let cluster = runtime.block_on(builder.start()).expect("the cluster starts");
        Self { cluster, runtime }
    }

    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader", || self.runtime.block_on(self.cluster.leader()).ok())
    }

    /// Runs `outlast ARGS` against the cluster.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(exe());
        command.args(args).env("OUTLAST_COORDINATOR", self.cluster.endpoints()).env("NO_COLOR", "1");
        command.output().expect("the binary runs")
    }

    /// Runs it, and must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "outlast {args:?} failed ({}):\n{out}\n{err}", output.status);
        out.into_owned()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{args:?} printed no JSON ({error}): {text}"))
    }

    /// Submits a job file given as JSON; answers its id.
    pub(crate) fn submit(&self, spec: &Value) -> String {
        let file = self.cluster.folder().join(format!("{}.json", spec["name"].as_str().expect("a name")));
        std::fs::write(&file, spec.to_string()).expect("the job file can be written");
        let answer = self.json(&["job", "submit", "-f", &file.to_string_lossy()]);
        answer["job_id"].as_str().expect("an id").to_owned()
    }

    pub(crate) fn wait_job(&self, job: &str, what: &str, fits: impl Fn(&Job) -> bool) -> Job {
        let mut last = String::new();
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            // A cluster in trouble may have no answer for a moment.
            let output = self.run(&["job", "show", job, "-o", "json"]);
            if let Ok(value) = serde_json::from_slice(&output.stdout) {
                let job = Job(value);
                if fits(&job) {
                    return job;
                }
                last = job.0.to_string();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let explain = self.run(&["job", "explain", job]);
        panic!(
            "waited in vain for {what}; explain: {}\nlast: {last}",
            String::from_utf8_lossy(&explain.stdout)
        );
    }

    pub(crate) fn wait_success(&self, job: &str) -> Job {
        let done = self.wait_job(job, "the job's end", |job| {
            ["succeeded", "failed", "cancelled"].contains(&job.state())
        });
        assert_eq!(done.state(), "succeeded", "{}", done.0);
        done
    }

    /// Nothing that belonged to the cluster may be alive once it was told to stop.
    pub(crate) fn assert_nothing_left(mut self) {
        let left = self.cluster.stop();
        assert!(left.is_empty(), "processes left over: {left:?}");
        let outside = self.cluster.outside();
        assert!(outside.is_empty(), "folders left over: {outside:?}");
    }
}

/// A job as `outlast job show -o json` prints it.
pub(crate) struct Job(pub(crate) Value);

impl Job {
    pub(crate) fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }
    pub(crate) fn attempts(&self) -> &[Value] {
        self.0["groups"][0]["attempts"].as_array().map_or(&[], Vec::as_slice)
    }
    pub(crate) fn newest(&self) -> &Value {
        self.attempts().last().unwrap_or(&Value::Null)
    }
    pub(crate) fn number(&self) -> u64 {
        self.newest()["number"].as_u64().unwrap_or(0)
    }
    pub(crate) fn phase(&self) -> &str {
        self.newest()["phase"].as_str().unwrap_or_default()
    }
    pub(crate) fn node_of(&self, rank: usize) -> String {
        self.newest()["assignments"][rank]["node"].as_str().unwrap_or_default().to_owned()
    }
    pub(crate) fn sealed(&self) -> Vec<u64> {
        let checkpoints = self.0["checkpoints"].as_array().map_or(&[][..], Vec::as_slice);
        checkpoints.iter().filter(|c| c["state"] == "sealed").filter_map(|c| c["step"].as_u64()).collect()
    }
    pub(crate) fn is_running(&self) -> bool {
        self.phase() == "running"
    }

    /// At most one attempt is current, and numbers only grow (invariants 21, 22).
    pub(crate) fn assert_attempts_in_order(&self) {
        let attempts = self.attempts();
        let numbers: Vec<u64> = attempts.iter().filter_map(|a| a["number"].as_u64()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "attempt numbers must grow: {numbers:?}");
        let current = attempts.iter().filter(|a| a["phase"] != "ended").count();
        assert!(current <= 1, "at most one attempt is current: {}", self.0);
    }
}

/// The digits job, slow enough to be disturbed. Its result goes to `result`.
pub(crate) fn digits(name: &str, workers: u32, step_ms: u32, result: &Path) -> Value {
    serde_json::json!({
        "name": name,
        "command": [exe(), "example", "digits"],
        "workers": workers,
        "resources": {"cpus": 1},
        "env": {"DIGITS_STEP_MS": step_ms.to_string(), "DIGITS_EPOCHS": "6", "DIGITS_RESULT": result},
        "checkpoint": {"every": "500ms"},
    })
}

/// A job of one shell line.
pub(crate) fn shell(name: &str, line: &str) -> Value {
    serde_json::json!({"name": name, "script": line, "resources": {"cpus": 0.5}})
}

/// The weights' digest in a result file.
pub(crate) fn digest(result: &Path) -> String {
    let text = std::fs::read_to_string(result)
        .unwrap_or_else(|error| panic!("no result at {}: {error}", result.display()));
    let value: Value = serde_json::from_str(&text).expect("the result is JSON");
    value["digest"].as_str().expect("a digest").to_owned()
}

/// What the same training gives when nobody disturbs it, without Outlast.
pub(crate) fn undisturbed_digest(workers: u32, folder: &Path) -> String {
    let result = folder.join("undisturbed.json");
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let rank = |rank: u32| {
        Command::new(exe())
            .args(["example", "digits"])
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", workers.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("DIGITS_EPOCHS", "6")
            .env("DIGITS_RESULT", &result)
            .current_dir(folder)
            .spawn()
            .expect("the binary runs")
    };
    let mut ranks: Vec<_> = (0..workers).map(rank).collect();
    for child in &mut ranks {
        assert!(child.wait().expect("it ends").success(), "the undisturbed run failed");
    }
    digest(&result)
}
