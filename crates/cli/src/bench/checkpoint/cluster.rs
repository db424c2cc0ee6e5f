//! Saves of a real worker in a cluster of real processes: three coordinators and two agents, all on the measured disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outlast_client::Client;
use outlast_local::{Builder, LocalCluster};
use serde_json::json;

use super::super::figures::{Figures, quantile};
use super::CheckpointArgs;
use super::worker::{SMALL_SEALED, SMALL_SYNC};

pub(super) const SYNC_P99: &str = "small write and fdatasync between them: p99, ms";
pub(super) const SEAL_P50: &str = "seal latency: p50, ms";
pub(super) const SEAL_P99: &str = "seal latency: p99, ms";
const ROW_P50: &str = "seal latency, one save right after the other: p50, ms";
const ROW_P99: &str = "seal latency, one save right after the other: p99, ms";
pub(super) const MEMORY: &str = "memory of an agent, highest, MiB";
const MEMORY_BEFORE: &str = "memory of an agent before the saves, highest, MiB";
/// One page: only the way to the seal is timed.
const SMALL_BYTES: u64 = 4 << 10;
/// No training saves a hundred times a second: by then the checkpoint before is proven, and an older one has gone.
const PAUSE_MS: u64 = 50;
/// The slowest disk that a run is waited for on, with everything that one save moves.
const BYTES_PER_S_MIN: u64 = 2 << 20;
const DEADLINE_MIN: Duration = Duration::from_secs(300);

pub(super) async fn measure(folder: &Path, args: &CheckpointArgs, figures: &mut Figures) -> Result<()> {
    let exe = std::env::current_exe().context("this program does not know its own path")?;
    std::fs::create_dir_all(folder).context("no folder for the cluster")?;
    let builder = Builder::new(exe).coordinators(3).agents(2).agent_args(&["--cpus", "4"]).folder(folder);
    let cluster = builder.start().await?;
    memory(&cluster, MEMORY_BEFORE, figures);
    eprintln!("a worker that saves: {} runs", args.runs);
    let saves = Saves { size: args.size.0, count: args.runs, small: false, pause_ms: 0 };
    run(&cluster, "saver", &saves, figures).await?;
    memory(&cluster, MEMORY, figures);
    eprintln!("small checkpoints until they are sealed: {} each way, twice", args.seals);
    for (name, pause_ms, p50, p99) in
        [("sealer", PAUSE_MS, SEAL_P50, SEAL_P99), ("sealer-in-a-row", 0, ROW_P50, ROW_P99)]
    {
        let mut seals = Figures::default();
        let saves = Saves { size: SMALL_BYTES, count: args.seals, small: true, pause_ms };
        run(&cluster, name, &saves, &mut seals).await?;
        if pause_ms > 0 {
            figures.add(SYNC_P99, quantile(seals.values(SMALL_SYNC), 0.99));
        }
        figures.add(p50, quantile(seals.values(SMALL_SEALED), 0.5));
        figures.add(p99, quantile(seals.values(SMALL_SEALED), 0.99));
    }
    Ok(())
}

struct Saves {
    size: u64,
    count: u32,
    /// They stay on one node: copies are not the seal.
    small: bool,
    pause_ms: u64,
}

/// Runs the worker as a job, and takes over what it measured.
async fn run(cluster: &LocalCluster, name: &str, saves: &Saves, figures: &mut Figures) -> Result<()> {
    let Saves { size, count, small, pause_ms } = *saves;
    let exe = std::env::current_exe().context("this program does not know its own path")?;
    let out = cluster.folder().join(format!("{name}-figures.json"));
    let mut command = vec![exe.display().to_string(), "bench".to_owned(), "worker".to_owned()];
    command.extend(["--size-bytes".to_owned(), size.to_string(), "--saves".to_owned(), count.to_string()]);
    command.extend(["--pause-ms".to_owned(), pause_ms.to_string()]);
    command.extend(["--out".to_owned(), out.display().to_string()]);
    command.extend(small.then(|| "--small".to_owned()));
    let spec = json!({
        "name": name, "command": command, "resources": {"cpus": 1},
        "checkpoint": {"every": "1h", "keep": 1, "durability": if small { "local" } else { "replicated" }},
        "recovery": {"max_user_failures": 1, "hang_after": "never"},
    });
    let client = cluster.client();
    let answer = client.submit_job(spec.to_string(), String::new()).await.context("the job was refused")?;
    let moved = size.saturating_mul(u64::from(count));
    let within = DEADLINE_MIN + Duration::from_secs(moved / BYTES_PER_S_MIN);
    ended(client, &answer.job_id, within).await?;
    let text = std::fs::read(&out).context("the worker left no figures")?;
    let values: BTreeMap<String, Vec<f64>> =
        serde_json::from_slice(&text).context("its figures are damaged")?;
    for (name, values) in values {
        values.into_iter().for_each(|value| figures.add(&name, value));
    }
    Ok(())
}

async fn ended(client: &Client, job: &str, within: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        if let Ok(job) = client.get_job(job).await
            && job.finished_at.is_some()
        {
            ensure!(
                job.state == "succeeded",
                "job {} {}: {}{}",
                job.name,
                job.state,
                job.reason,
                words(&job)
            );
            return Ok(());
        }
        ensure!(started.elapsed() < within, "job {job} did not end within {} s", within.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The worker's last words.
fn words(job: &outlast_proto::control::v1::Job) -> String {
    let attempts = job.groups.iter().flat_map(|group| &group.attempts);
    let lines = attempts.flat_map(|attempt| &attempt.assignments).flat_map(|one| &one.last_lines);
    lines.map(|line| format!("\n  | {line}")).collect()
}

fn memory(cluster: &LocalCluster, name: &str, figures: &mut Figures) {
    for mib in cluster.agents.iter().filter_map(|agent| highest_mib(agent.pid()?)) {
        figures.add(name, mib);
    }
}

/// The most that the process ever had in memory, by the kernel's count.
fn highest_mib(pid: i32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1_024.0)
}
