//! A run: clients and faults, healing, the last look, and the verdict.
//!
//! ```text
//!  start ─► clients + faults ─► heal: all votes, all nodes ready ─► every job ends ─► last reads, deep verify
//!        ─► nothing is left ─► checkers, coverage, report
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::bed::{Bed, BedArgs, Disk, Form};
use crate::check::Wanted;
use crate::clients::{Board, Clients, JobMaker};
use crate::entry::Tag;
use crate::history::Recorder;
use crate::nemesis::{Kind, Needs, Nemeses, choose, plan};
use crate::report::{self, Outcome};

mod disks;
mod last;
mod watch;

pub(crate) use last::{read_usage, scan_logs};
pub(crate) use watch::Supervisor;

/// Violated is 1, as any failure; a run that proves nothing is told apart.
const REJECTED: u8 = 3;
/// Clients and jobs are under way before the first fault.
const LEAD: Duration = Duration::from_secs(3);
/// From the last healing until all vote, all nodes are ready.
const WHOLE_MAX: Duration = Duration::from_secs(120);
/// Nobody reads a core dump of the harness's own runs for longer.
const RUNTIME_THREADS: usize = 4;

#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) bed: BedArgs,
    /// How long faults come; healing and the last look come on top
    #[arg(long, default_value_t = 5.0)]
    pub(crate) minutes: f64,
    /// `all`, `short`, or names with commas
    #[arg(long, default_value = "all")]
    pub(crate) nemesis: String,
}

pub(crate) fn run(args: &RunArgs, tag: &Tag) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build();
    runtime.context("no runtime")?.block_on(run_async(args, tag))
}

async fn run_async(args: &RunArgs, tag: &Tag) -> Result<ExitCode> {
    let seed = args.bed.seed.unwrap_or_else(seed_of_clock);
    let out = out_folder(&args.bed, seed)?;
    let wanted = wanted(&choose(&args.nemesis)?, tag);
    let kinds: Vec<Kind> =
        wanted.iter().filter(|(_, w)| w.lacking.is_none()).map(|(kind, _)| *kind).collect();
    let length_ms = (args.minutes * 60_000.0) as u64;
    let plan = plan(seed, length_ms, &kinds)?;
    println!("chaos: seed {seed}, {} faults in {} s, to {}", plan.len(), length_ms / 1_000, out.display());
    let recorder = Recorder::create(&out.join("history.jsonl"))?;
    recorder.phase("start");
    let bed = Arc::new(Bed::start(tag, &args.bed).await?);
    let done = story(&bed, &recorder, &plan, seed).await;
    let logs = scan_logs(&bed, &recorder);
    let bed = Arc::into_inner(bed).context("somebody still uses the cluster")?;
    recorder.phase("stop");
    for work in crate::worker::read_journals(&bed.journal) {
        recorder.put(crate::history::What::Work(work));
    }
    for thing in bed.stop(&out) {
        recorder.put(crate::history::What::Left { thing });
    }
    if let Err(err) = done.and(logs) {
        // What is in the history is still worth a look.
        eprintln!("chaos: the run broke off: {err:#}");
        recorder.put(crate::history::What::Log { daemon: "harness".to_owned(), line: format!("{err:#}") });
    }
    let mut told: Vec<Wanted> = wanted.into_iter().map(|(_, wanted)| wanted).collect();
    if !may_be_exclusive() {
        told.push(Wanted {
            nemesis: "exclusive",
            lacking: Some("no control groups without root".to_owned()),
        });
    }
    let about = report::About { seed, command: command(args, seed), form: form(args, tag), wanted: told };
    Ok(match report::write(&recorder.records()?, &about, &out)? {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Violated => ExitCode::FAILURE,
        Outcome::Rejected => ExitCode::from(REJECTED),
    })
}

async fn story(
    bed: &Arc<Bed>,
    recorder: &Recorder,
    plan: &[crate::nemesis::Planned],
    seed: u64,
) -> Result<()> {
    read_usage(bed, recorder, true);
    let board = Arc::new(Board::default());
    let maker = job_maker(bed)?;
    let mut clients = Clients::start(bed, recorder, &board, &maker, seed)?;
    let supervisor = Supervisor::start(bed, recorder);
    tokio::time::sleep(LEAD).await;
    recorder.phase("faults");
    Nemeses { bed: Arc::clone(bed), recorder: recorder.clone() }.run(plan).await;
    recorder.phase("heal");
    let whole = heal(bed, plan).await;
    clients.stop_asking().await;
    let ended = match whole {
        Ok(()) => last::see_to_the_end(bed, recorder, &board, seed).await,
        Err(err) => Err(err),
    };
    read_usage(bed, recorder, false);
    clients.stop_watching().await;
    supervisor.stop().await;
    ended
}

pub(crate) fn job_maker(bed: &Bed) -> Result<JobMaker> {
    let exe = std::env::current_exe().context("this program has no path")?;
    let (journal, root) = (bed.journal.clone(), bed.root.clone());
    Ok(JobMaker { exe, journal, root, may_be_exclusive: may_be_exclusive() })
}

fn may_be_exclusive() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything works again, whatever a fault left behind.
async fn heal(bed: &Bed, plan: &[crate::nemesis::Planned]) -> Result<()> {
    if let Some(network) = &bed.network {
        for planned in plan {
            network.heal(planned.id)?;
        }
    }
    for (name, disk) in &bed.disks {
        disk.empty();
        if disk.try_write().is_err() {
            bed.with(name, |daemon| {
                daemon.kill_tree();
                Ok(())
            })?;
            disk.restart()?;
        }
    }
    wait_whole(bed).await
}

/// All coordinators vote and are reached, all nodes are ready. Who has ended is started by the supervisor.
async fn wait_whole(bed: &Bed) -> Result<()> {
    let began = Instant::now();
    let (coordinators, agents) = (bed.coordinators().len(), bed.agents().len());
    let mut last = String::new();
    while began.elapsed() < WHOLE_MAX {
        match bed.status().await {
            Ok(status) => {
                let votes = |c: &&outlast_proto::control::v1::Coordinator| {
                    c.reachable && (c.role == "leader" || c.role == "follower")
                };
                let voters = status.coordinators.iter().filter(votes).count();
                if voters == coordinators
                    && status.nodes_ready as usize == agents
                    && !status.leader.is_empty()
                {
                    return Ok(());
                }
                last = format!("{status:?}");
            }
            Err(err) => last = format!("{err:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("the cluster is not whole {} s after the healing: {last}", WHOLE_MAX.as_secs())
}

/// Each kind that was asked for, and what this machine lacks for it.
fn wanted(kinds: &[Kind], tag: &Tag) -> Vec<(Kind, Wanted)> {
    let of = |kind: &Kind| (*kind, Wanted { nemesis: kind.name(), lacking: lacking(*kind, tag) });
    kinds.iter().map(of).collect()
}

fn lacking(kind: Kind, tag: &Tag) -> Option<String> {
    let needs = kind.about().needs;
    if needs == Needs::Nothing {
        return None;
    }
    if tag.form != Form::Namespaces {
        let why = tag.lacking.first().cloned().unwrap_or_else(|| "the form is loopback".to_owned());
        return Some(why);
    }
    match needs {
        Needs::SlowDisks if !Disk::can_be_slow() => Some("no blkio control group of version 1".to_owned()),
        Needs::Clocks if !Path::new("/proc/self/ns/time").exists() => Some("no time namespaces".to_owned()),
        _ => None,
    }
}

pub(crate) fn seed_of_clock() -> u64 {
    // Only a default that differs from run to run; the report names it.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() % 1_000_000)
}

pub(crate) fn out_folder(args: &BedArgs, seed: u64) -> Result<PathBuf> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let exe = std::env::current_exe().context("this program has no path")?;
            let target = exe.parent().and_then(Path::parent).context("this program lies nowhere")?;
            target.join("chaos").join(format!("{seed}"))
        }
    };
    if out.join("history.jsonl").exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("could not empty {}", out.display()))?;
    }
    std::fs::create_dir_all(&out).with_context(|| format!("could not make {}", out.display()))?;
    ensure!(out.is_dir(), "{} is no folder", out.display());
    Ok(out)
}

fn command(args: &RunArgs, seed: u64) -> String {
    let RunArgs { bed, minutes, nemesis } = args;
    format!(
        "cargo xtask chaos --minutes {minutes} --nemesis {nemesis} --seed {seed} --coordinators {} --agents {}",
        bed.coordinators, bed.agents
    )
}

fn form(args: &RunArgs, tag: &Tag) -> String {
    let how = if tag.form == Form::Namespaces { "namespaces and disks of their own" } else { "loopback" };
    format!(
        "{} coordinators, {} agents, {how}; faults for {} minutes; reads are judged by the oracle alone",
        args.bed.coordinators, args.bed.agents, args.minutes
    )
}
