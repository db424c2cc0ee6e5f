//! `outlast bench worker`: the program of the benchmark's job. It saves as a training loop does, through the public SDK,
//! and writes what it measured into a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outlast_worker::{Saved, SealOutcome, Worker};

use super::tensors::Tensors;

/// Longer than any checkpoint stays open.
const SEAL_LIMIT: Duration = Duration::from_secs(600);

pub(super) const SEALED: &str = "replicated to a second agent and sealed after, s";
pub(super) const SMALL_SEALED: &str = "small save: sealed after it was durable, ms";
pub(super) const SMALL_SYNC: &str = "small write and fdatasync, ms";
/// What a log entry writes at least.
const PROBE_BYTES: usize = 4 << 10;

/// A way of handing over a checkpoint. Another one is another line here, and a row of its own in the table.
pub(super) struct Way {
    /// The row of the stall.
    pub(super) stall: &'static str,
    /// The row of the copies that were made just before its saves.
    pub(super) memcpy: &'static str,
    /// How long the worker could not train, and what was saved.
    save: fn(&Worker, u64, &Tensors) -> Result<(Duration, Saved)>,
}

pub(super) const WAYS: &[Way] = &[
    Way {
        stall: "worker's stall, through shared memory, s",
        memcpy: "memcpy by one thread, before shared memory, s",
        save: through_memory,
    },
    Way {
        stall: "worker's stall, through a folder, s",
        memcpy: "memcpy by one thread, before a folder, s",
        save: through_folder,
    },
];

#[derive(Debug, clap::Args)]
pub(in crate::bench) struct WorkerArgs {
    /// Bytes of a checkpoint
    #[arg(long)]
    size_bytes: u64,
    #[arg(long)]
    saves: u32,
    /// Only the time until sealed is of interest
    #[arg(long)]
    small: bool,
    /// Before each save: what follows on the one before is done then
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Where the figures go
    #[arg(long)]
    out: PathBuf,
}

pub(in crate::bench) fn run(args: &WorkerArgs) -> Result<ExitCode> {
    let worker = Worker::connect().context("the agent does not answer")?;
    let worker = worker.context("this is not a worker: `outlast bench checkpoint` starts it")?;
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut tensors = Tensors::new(args.size_bytes);
    // Its pages are touched before anything is timed. A small one's copy is of no interest.
    let mut copy = Tensors::new(if args.small { 0 } else { args.size_bytes });
    if !args.small {
        // Done once at the start of a training: room for the parts and their headers.
        worker.reserve(args.size_bytes + args.size_bytes / 64 + (1 << 20)).context("no shared memory")?;
    }
    let mut probe = Probe::new(&worker.checkpoint_dir().join("probe"))?;
    let mut step = 0;
    for save in 0..args.saves {
        for turn in 0..WAYS.len() {
            // In either order: what a way leaves behind meets the other one as often as itself.
            let way = &WAYS[(turn + save as usize) % WAYS.len()];
            step += 1;
            tensors.change(step);
            let pause = || std::thread::sleep(Duration::from_millis(args.pause_ms));
            pause();
            // Not before each save: a sync also does what would be done at the save's own.
            if args.pause_ms > 0 && step.is_multiple_of(2) {
                values.entry(SMALL_SYNC).or_default().push(probe.sync_ms()?);
                pause();
            }
            let began = Instant::now();
            tensors.copy_into(&mut copy);
            let copied = began.elapsed();
            let (stall, saved) = (way.save)(&worker, step, &tensors)?;
            let sealed = wait_sealed(&worker, &saved)?;
            if args.small {
                values.entry(SMALL_SEALED).or_default().push(sealed.as_secs_f64() * 1_000.0);
            } else {
                values.entry(way.memcpy).or_default().push(copied.as_secs_f64());
                values.entry(way.stall).or_default().push(stall.as_secs_f64());
                values.entry(SEALED).or_default().push(sealed.as_secs_f64());
            }
        }
    }
    let text = serde_json::to_vec(&values).context("the figures are no JSON")?;
    // The benchmark looks for the name: it appears with the whole content.
    let part = args.out.with_extension("part");
    fs::write(&part, text).and_then(|()| fs::rename(&part, &args.out)).context("no file for the figures")?;
    Ok(ExitCode::SUCCESS)
}

/// What the disk takes for as much as a log entry, measured in turns with the seals: it has good and bad minutes.
struct Probe(File);

impl Probe {
    fn new(path: &Path) -> Result<Self> {
        File::create(path).map(Self).context("a file cannot be made")
    }

    fn sync_ms(&mut self) -> Result<f64> {
        let began = Instant::now();
        self.0.write_all(&[7; PROBE_BYTES]).context("the disk refused bytes")?;
        self.0.sync_data().context("the disk refused to sync")?;
        Ok(began.elapsed().as_secs_f64() * 1_000.0)
    }
}

fn wait_sealed(worker: &Worker, saved: &Saved) -> Result<Duration> {
    let began = Instant::now();
    let outcome = worker.wait_sealed(&saved.checkpoint, SEAL_LIMIT);
    match outcome.with_context(|| format!("nobody says what became of {}", saved.checkpoint))? {
        SealOutcome::Sealed => Ok(began.elapsed()),
        SealOutcome::GivenUp { reason } => bail!("{} was given up: {reason}", saved.checkpoint),
    }
}

/// Files in the worker's own folder, then the call: the worker waits for both. The files are written anew each time, as
/// `torch.save` does.
fn through_folder(worker: &Worker, step: u64, tensors: &Tensors) -> Result<(Duration, Saved)> {
    let began = Instant::now();
    let folder = worker.checkpoint_dir().join("bench");
    write_files(&folder, tensors)?;
    let saved = worker.save_in_turn(step, &folder).context("the save failed")?;
    Ok((began.elapsed(), saved))
}

/// Copied into the agent's memory; what it does with them then is no stall.
fn through_memory(worker: &Worker, step: u64, tensors: &Tensors) -> Result<(Duration, Saved)> {
    let names: Vec<String> = (0..tensors.iter().count()).map(|number| format!("tensor-{number}")).collect();
    let parts: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(tensors.iter()).collect();
    let began = Instant::now();
    let staged = worker.save_parts_in_turn(step, &parts).context("the save failed")?;
    let stall = began.elapsed();
    let saved = worker.wait_saved(&staged, SEAL_LIMIT).context("what was staged was not saved")?;
    Ok((stall, saved))
}

fn write_files(folder: &Path, tensors: &Tensors) -> Result<()> {
    fs::create_dir_all(folder).context("no folder for the checkpoint")?;
    for (number, tensor) in tensors.iter().enumerate() {
        fs::write(folder.join(format!("tensor-{number}")), tensor).context("a tensor was not written")?;
    }
    Ok(())
}
