//! Detection, recovery, submissions and commits, each several times on one cluster of real processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use outlast_client::Client;
use outlast_local::{Builder, LocalCluster, find_processes};
use outlast_proto::control::v1::{Attempt, ClusterStatusResponse, Event};
use outlast_types::WallTime;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::events::Events;
use super::figures::{Figures, quantile};
use crate::local::wall_now;

#[derive(Debug, clap::Args)]
pub(super) struct ControlArgs {
    /// How often each kill is repeated.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Writes that are timed one after the other.
    #[arg(long, default_value_t = 500)]
    writes: u32,
    /// Jobs that are submitted by 64 clients at once.
    #[arg(long, default_value_t = 2000)]
    submissions: u32,
    /// Write all single values as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const CLIENTS: u32 = 64;
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn run(args: ControlArgs) -> Result<ExitCode> {
    let exe = std::env::current_exe().context("this program does not know its own path")?;
    let mut cluster =
        Builder::new(exe).coordinators(3).agents(4).agent_args(&["--cpus", "2"]).start().await?;
    let events = Events::watch(cluster.client());
    let mut figures = Figures::default();
    let answer =
        cluster.client().submit_job(sleeper(), String::new()).await.context("the job was refused")?;
    let job = answer.job_id;
    for run in 1..=args.runs {
        eprintln!("run {run} of {}", args.runs);
        kill_worker(&cluster, &events, &mut figures).await?;
        kill_node(&mut cluster, &events, &job, &mut figures).await?;
        kill_leader(&mut cluster, &mut figures).await?;
    }
    commit_latency(cluster.client(), args.writes, &mut figures).await?;
    submissions(&cluster, args.submissions, &mut figures).await?;
    memory(&cluster, &mut figures);
    println!("{}", figures.table());
    if let Some(file) = &args.json {
        std::fs::write(file, figures.json().to_string())
            .with_context(|| format!("could not write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Two ranks that only wait: nothing to restore, nothing to salvage.
fn sleeper() -> String {
    let spec = json!({
        "name": "sleeper", "command": ["sleep", "100000"], "workers": 2, "resources": {"cpus": 1},
        "recovery": {"max_user_failures": 1_000_000, "hang_after": "never"},
    });
    spec.to_string()
}

/// Waits until the job's newest attempt runs, is newer than `after`, and no back-off is in force for it.
async fn running(client: &Client, job: &str, after: u64) -> Result<Attempt> {
    let started = Instant::now();
    loop {
        if let Ok(job) = client.get_job(job).await {
            let newest = job.groups.first().and_then(|group| group.attempts.last());
            if let Some(attempt) =
                newest.filter(|attempt| attempt.number > after && attempt.phase == "running")
            {
                return Ok(attempt.clone());
            }
        }
        anyhow::ensure!(started.elapsed() < SETTLE_DEADLINE, "job {job} does not run");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn seconds(from: WallTime, to: WallTime) -> f64 {
    to.since(from) as f64 / 1_000.0
}

fn is_start_of_next(job: &str) -> impl Fn(&Event) -> bool {
    move |event| event.kind == "attempt_started" && event.job == job
}

/// A fresh job for each kill of a worker, since repeated failures are held back on purpose.
async fn kill_worker(cluster: &LocalCluster, events: &Events, figures: &mut Figures) -> Result<()> {
    let name = format!("victim-{}", wall_now().0);
    let spec = json!({"name": name, "command": ["sleep", "99999"], "resources": {"cpus": 0.1}}).to_string();
    let job = cluster.client().submit_job(spec, String::new()).await.context("the job was refused")?.job_id;
    let before = running(cluster.client(), &job, 0).await?;
    let worker = find_processes(cluster.folder()).into_iter().find(|found| found.command == "sleep 99999");
    let pid = Pid::from_raw(worker.context("the worker is not to be found")?.pid).context("a pid")?;
    let since = wall_now();
    kill_process(pid, Signal::KILL).context("the worker could not be killed")?;
    let known = events.wait("the exit", since, |e| e.kind == "worker_exited" && e.job == job).await?;
    let next = events.wait("the next attempt", known, is_start_of_next(&job)).await?;
    figures.add("worker killed: exit in the log after, s", seconds(since, known));
    figures.add("worker killed: next attempt in the log after, s", seconds(since, next));
    running(cluster.client(), &job, before.number).await?;
    cluster.client().cancel_job(&job, "benchmark").await.context("the job could not be cancelled")?;
    Ok(())
}

async fn kill_node(
    cluster: &mut LocalCluster,
    events: &Events,
    job: &str,
    figures: &mut Figures,
) -> Result<()> {
    let before = running(cluster.client(), job, 0).await?;
    let node = before.assignments.get(1).context("rank 1 is placed")?.node.clone();
    let since = wall_now();
    cluster.agent_mut(&node)?.kill_tree();
    let lost = events.wait("the loss", since, |e| e.kind == "node_lost" && e.node == node).await?;
    let next = events.wait("the next attempt", lost, is_start_of_next(job)).await?;
    figures.add("node killed: lost after, s", seconds(since, lost));
    figures.add("node killed: next attempt in the log after its loss, s", seconds(lost, next));
    running(cluster.client(), job, before.number).await?;
    cluster.agent_mut(&node)?.start()?;
    let agents = cluster.agents.len() as u32;
    cluster.wait_status("the node to come back", |status| status.nodes_ready >= agents).await
}

async fn kill_leader(cluster: &mut LocalCluster, figures: &mut Figures) -> Result<()> {
    let leader = cluster.leader().await?;
    let started = Instant::now();
    cluster.coordinators[leader].kill();
    write(cluster.client()).await?;
    figures.add("leader killed: first acknowledged write after, s", started.elapsed().as_secs_f64());
    cluster.coordinators[leader].start()?;
    let whole = |status: &ClusterStatusResponse| status.coordinators.iter().all(|c| c.reachable);
    cluster.wait_status("the coordinator to come back", whole).await
}

/// One small durable change.
async fn write(client: &Client) -> Result<()> {
    let label = BTreeMap::from([("bench".to_owned(), wall_now().0.to_string())]);
    client.label_node("n1", label, Vec::new()).await.context("the write was not acknowledged")?;
    Ok(())
}

async fn commit_latency(client: &Client, writes: u32, figures: &mut Figures) -> Result<()> {
    let mut millis = Vec::new();
    for _ in 0..writes {
        let started = Instant::now();
        write(client).await?;
        millis.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    figures.add("commit, one client: p50, ms", quantile(&millis, 0.5));
    figures.add("commit, one client: p99, ms", quantile(&millis, 0.99));
    Ok(())
}

/// Jobs that no node may take, so that only their acknowledgement is measured.
async fn submissions(cluster: &LocalCluster, total: u32, figures: &mut Figures) -> Result<()> {
    let each = total.div_ceil(CLIENTS);
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let endpoints = cluster.coordinators.iter().map(|c| format!("http://{}", c.address)).collect();
        let client = Client::new(endpoints).context("the endpoints are no addresses")?;
        clients.spawn(submit_many(client, number, each));
    }
    let mut millis = Vec::new();
    while let Some(done) = clients.join_next().await {
        millis.extend(done.context("a client stopped")??);
    }
    figures.add(
        "submissions, 64 clients, 3 coordinators, 1/s",
        millis.len() as f64 / started.elapsed().as_secs_f64(),
    );
    figures.add("submissions, 64 clients: p50, ms", quantile(&millis, 0.5));
    figures.add("submissions, 64 clients: p99, ms", quantile(&millis, 0.99));
    Ok(())
}

async fn submit_many(client: Client, number: u32, jobs: u32) -> Result<Vec<f64>> {
    let mut millis = Vec::new();
    for i in 0..jobs {
        let spec = json!({
            "name": format!("bench-{number}-{i}"), "command": ["true"], "placement": {"require": {"bench": "never"}},
        });
        let started = Instant::now();
        client.submit_job(spec.to_string(), String::new()).await.context("a submission failed")?;
        millis.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(millis)
}

fn memory(cluster: &LocalCluster, figures: &mut Figures) {
    for daemon in &cluster.coordinators {
        if let Some(mib) = daemon.pid().and_then(resident_mib) {
            figures.add("memory of a coordinator, MiB", mib);
        }
    }
    for daemon in &cluster.agents {
        if let Some(mib) = daemon.pid().and_then(resident_mib) {
            figures.add("memory of an agent, MiB", mib);
        }
    }
}

fn resident_mib(pid: i32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1_024.0)
}
