//! What checkpoints cost on this machine, each thing beside the plain thing that it is to be compared with, in turns, so
//! that a disk's bad minute shows in both.
//!
//! ```text
//!  alone:    plain write · write without hashes · shard write · plain read · verified read · hashing    (disk)
//!  cluster:  worker: memcpy · save · until sealed                                                        (worker)
//!            small saves: until sealed                       memory of the agents                        (cluster)
//! ```

mod cluster;
mod disk;
mod report;
mod tensors;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use outlast_types::ByteSize;
use rustix::fs::statvfs;

use super::figures::Figures;
use report::Report;
use tensors::Tensors;

pub(super) use worker::{WorkerArgs, run as run_worker};

/// Files of this many times the size are on the disk at once: a plain one and a shard, or the worker's folder and the
/// shards of two checkpoints on two agents; and some air.
const DISK_FACTOR: u64 = 8;
/// The worker's tensors, their copy, and as much again for the page cache to write from.
const MEMORY_FACTOR: u64 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct CheckpointArgs {
    /// Bytes of one rank's checkpoint, as tensors of 16 MiB
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    size: ByteSize,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Small checkpoints that are timed until they are sealed
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    seals: u32,
    /// A folder on the disk to measure [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write all single values as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) async fn run(args: CheckpointArgs) -> Result<ExitCode> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    check_room(&dir, args.size.0)?;
    let folder = tempfile::Builder::new().prefix("outlast-bench-").tempdir_in(&dir);
    let folder = folder.with_context(|| format!("{} cannot be written", dir.display()))?;
    let mut figures = Figures::default();
    let (root, runs, size) = (folder.path().join("alone"), args.runs, args.size.0);
    let alone = move || {
        eprintln!("the disk alone: {runs} runs");
        disk::measure(&root, &Tensors::new(size), runs, &mut figures).map(|()| figures)
    };
    let mut figures = tokio::task::spawn_blocking(alone).await.context("the measurement stopped")??;
    cluster::measure(&folder.path().join("cluster"), &args, &mut figures).await?;
    let report = Report::new(args.size, disk::name_of(folder.path()), figures);
    println!("{}", report.text());
    if let Some(file) = &args.json {
        std::fs::write(file, report.json().to_string())
            .with_context(|| format!("could not write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A full disk or a swapping machine would be measured instead.
fn check_room(dir: &Path, size: u64) -> Result<()> {
    let disk = statvfs(dir).with_context(|| format!("{} cannot be looked at", dir.display()))?;
    let free = disk.f_bavail * disk.f_frsize;
    let wanted = size * DISK_FACTOR;
    ensure!(
        free >= wanted,
        "{} has {} free, {} are needed: choose a smaller --size or another --dir",
        dir.display(),
        ByteSize(free),
        ByteSize(wanted)
    );
    let available = disk::available_memory().unwrap_or(u64::MAX);
    let wanted = size * MEMORY_FACTOR;
    ensure!(
        available >= wanted,
        "{} of memory are available, {} are needed: choose a smaller --size",
        ByteSize(available),
        ByteSize(wanted)
    );
    Ok(())
}
