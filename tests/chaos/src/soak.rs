//! The soak for false alarms: a busy machine, a jittered network and agents that pause below their lease. Nobody dies, so
//! nobody may be declared lost; every node that is, is counted, and one is too many.

use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::Signal;

use crate::bed::{Bed, BedArgs};
use crate::check::Timeline;
use crate::clients::{Board, Clients};
use crate::entry::Tag;
use crate::history::{Recorder, What};
use crate::rng::Rng;
use crate::run::{Supervisor, job_maker, out_folder, read_usage, scan_logs, seed_of_clock};

const REJECTED: u8 = 3;
/// Below a lease of 4 s, with room for a heartbeat that was just due (500 ms) and the kill budget (500 ms).
const PAUSE_MS: (u64, u64) = (200, 2_000);
/// A cable that carries nothing for this long is what a switch does when it learns.
const CUT_MS: (u64, u64) = (50, 400);
const LOSS_PER_MILLE: (u64, u64) = (10, 80);
const LOSS_MS: (u64, u64) = (500, 4_000);
const BETWEEN_MS: (u64, u64) = (200, 1_500);
/// A new node or leader may still be finding its place.
const LEAD: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    pub(crate) bed: BedArgs,
    #[arg(long, default_value_t = 5.0)]
    pub(crate) minutes: f64,
    /// Processes that keep the cores busy [default: two for each core]
    #[arg(long)]
    pub(crate) burners: Option<usize>,
}

/// How often each disturbance came.
#[derive(Clone, Copy, Debug, Default)]
struct Disturbed {
    pauses: u32,
    cuts: u32,
    losses: u32,
}

pub(crate) fn run(args: &SoakArgs, tag: &Tag) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("no runtime")?.block_on(soak(args, tag))
}

async fn soak(args: &SoakArgs, tag: &Tag) -> Result<ExitCode> {
    let seed = args.bed.seed.unwrap_or_else(seed_of_clock);
    let out = out_folder(&args.bed, seed)?;
    println!("soak: seed {seed}, {} minutes, to {}", args.minutes, out.display());
    let recorder = Recorder::create(&out.join("history.jsonl"))?;
    let bed = Arc::new(Bed::start(tag, &args.bed).await?);
    let disturbed = disturb_all(args, &bed, &recorder, seed).await;
    scan_logs(&bed, &recorder)?;
    let bed = Arc::into_inner(bed).context("somebody still uses the cluster")?;
    let has_network = bed.network.is_some();
    for thing in bed.stop(&out) {
        recorder.put(What::Left { thing });
    }
    let disturbed = disturbed?;
    let records = recorder.records()?;
    let timeline = Timeline::of(&records);
    let lost: Vec<&str> = timeline
        .events()
        .filter(|(_, event)| event.kind == "node_lost")
        .map(|(_, event)| event.text.as_str())
        .collect();
    let wrong: Vec<String> = records
        .iter()
        .filter_map(|record| match &record.what {
            What::Log { daemon, line } => Some(format!("{daemon}: {line}")),
            What::Left { thing } => Some(format!("left over: {thing}")),
            _ => None,
        })
        .collect();
    println!("soak: {} pauses, {} cuts, {} losses", disturbed.pauses, disturbed.cuts, disturbed.losses);
    println!("soak: false evictions: {}", lost.len());
    lost.iter().for_each(|text| println!("soak: {text}"));
    wrong.iter().for_each(|text| println!("soak: {text}"));
    if !lost.is_empty() || !wrong.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let is_idle = disturbed.pauses == 0 || has_network && (disturbed.cuts == 0 || disturbed.losses == 0);
    if is_idle || !timeline.is_complete() || timeline.entries.is_empty() {
        println!("soak: rejected: not everything was done, or not every event was seen");
        return Ok(ExitCode::from(REJECTED));
    }
    Ok(ExitCode::SUCCESS)
}

async fn disturb_all(args: &SoakArgs, bed: &Arc<Bed>, recorder: &Recorder, seed: u64) -> Result<Disturbed> {
    read_usage(bed, recorder, true);
    let board = Arc::new(Board::default());
    let mut clients = Clients::start(bed, recorder, &board, &job_maker(bed)?, seed)?;
    let supervisor = Supervisor::start(bed, recorder);
    tokio::time::sleep(LEAD).await;
    recorder.phase("soak");
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let burners = Burners::start(args.burners.unwrap_or(2 * cores))?;
    let until = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    let (pauses, net) = tokio::join!(
        pause(bed, until, Rng::fork(seed, "pauses")),
        jitter(bed, until, Rng::fork(seed, "network"))
    );
    drop(burners);
    recorder.phase("end");
    // A lease that a last pause cost would run out by now.
    tokio::time::sleep(LEAD).await;
    clients.stop_asking().await;
    clients.stop_watching().await;
    supervisor.stop().await;
    let (cuts, losses) = net?;
    Ok(Disturbed { pauses: pauses?, cuts, losses })
}

/// One agent after the other, below its lease, and each time with time to recover.
async fn pause(bed: &Bed, until: Instant, mut rng: Rng) -> Result<u32> {
    let (agents, mut pauses) = (bed.agents(), 0);
    while Instant::now() < until {
        let agent = rng.pick(&agents).cloned().context("there is no agent")?;
        if bed.claim(std::slice::from_ref(&agent)) {
            signal(bed, &agent, Signal::STOP)?;
            sleep(rng.between(PAUSE_MS.0, PAUSE_MS.1)).await;
            signal(bed, &agent, Signal::CONT)?;
            pauses += 1;
            // Its heartbeats arrive again before it is disturbed once more.
            sleep(1_000).await;
            bed.release(std::slice::from_ref(&agent));
        }
        sleep(rng.between(BETWEEN_MS.0, BETWEEN_MS.1)).await;
    }
    Ok(pauses)
}

/// Short cuts of single cables, and losses on some; never at a node that is paused.
async fn jitter(bed: &Bed, until: Instant, mut rng: Rng) -> Result<(u32, u32)> {
    let Some(network) = &bed.network else { return Ok((0, 0)) };
    let names: Vec<String> = bed.addresses.keys().cloned().collect();
    let (mut cuts, mut losses) = (0, 0);
    for id in 1.. {
        if Instant::now() >= until {
            break;
        }
        let name = rng.pick(&names).cloned().context("there is no node")?;
        let one = std::slice::from_ref(&name);
        if bed.claim(one) {
            if rng.chance(50) {
                let others = names.iter().filter(|other| **other != name);
                let pairs =
                    others.flat_map(|other| [(name.clone(), other.clone()), (other.clone(), name.clone())]);
                network.block(id, pairs.collect())?;
                sleep(rng.between(CUT_MS.0, CUT_MS.1)).await;
                cuts += 1;
            } else {
                network.lose(id, one.to_vec(), rng.between(LOSS_PER_MILLE.0, LOSS_PER_MILLE.1) as u32)?;
                sleep(rng.between(LOSS_MS.0, LOSS_MS.1)).await;
                losses += 1;
            }
            network.heal(id)?;
            sleep(500).await;
            bed.release(one);
        }
        sleep(rng.between(BETWEEN_MS.0, BETWEEN_MS.1)).await;
    }
    Ok((cuts, losses))
}

fn signal(bed: &Bed, agent: &str, signal: Signal) -> Result<()> {
    bed.with(agent, |daemon| {
        daemon.signal(signal);
        Ok(())
    })
}

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Processes that do nothing, busily.
struct Burners(Vec<Child>);

impl Burners {
    fn start(count: usize) -> Result<Self> {
        let mut burners = Self(Vec::new());
        for _ in 0..count {
            let child = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
            burners.0.push(child.context("no burner can be started")?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
