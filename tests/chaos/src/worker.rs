//! The program of the jobs: a counter whose state is a known function of job, rank and step. It checks what it is given
//! back, and writes what it does to a folder that all nodes share.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use outlast_worker::{ConnectError, ReportError, Worker};

use crate::history::{Work, WorkKind, now_ns};
use crate::rng::Rng;

/// Big enough to hold many sectors that can rot, small enough for many checkpoints on a small disk.
const STATE_BYTES: usize = 48 << 10;
const STATE_FILE: &str = "state";
const SEAL_MAX: Duration = Duration::from_secs(60);
/// Another rank's end, or a lost agent: the supervisor decides what that means.
const FENCED: u8 = 10;
const BAD_STATE: u8 = 12;
const STOPPED: u8 = 13;

#[derive(Args, Debug)]
pub(crate) struct WorkerArgs {
    /// Where lines about this worker go
    #[arg(long)]
    journal: PathBuf,
    /// 0: until it is stopped
    #[arg(long)]
    steps: u64,
    #[arg(long)]
    step_ms: u64,
    /// Save at every multiple of this; all ranks at the same, so that they need not talk
    #[arg(long)]
    save_every: u64,
    /// Names the run, so that nothing of it is overlooked at its end
    #[arg(long)]
    root: PathBuf,
}

#[derive(Debug)]
enum WorkerError {
    Fenced,
    /// What came back is not what was saved.
    State(String),
    Stopped,
    Other(anyhow::Error),
}

pub(crate) fn run(args: &WorkerArgs) -> ExitCode {
    match work(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(WorkerError::Fenced) => ExitCode::from(FENCED),
        Err(WorkerError::Stopped) => ExitCode::from(STOPPED),
        Err(WorkerError::State(wrong)) => {
            eprintln!("chaos worker: {wrong}");
            ExitCode::from(BAD_STATE)
        }
        Err(WorkerError::Other(err)) => {
            eprintln!("chaos worker: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(args: &WorkerArgs) -> Result<(), WorkerError> {
    let mut journal = Journal::open(&args.journal).map_err(WorkerError::Other)?;
    // Before anything else: from here on this process counts as running.
    journal.put(WorkKind::Started, 0, "");
    let worker = match Worker::connect() {
        Ok(Some(worker)) => worker,
        Ok(None) => return Err(WorkerError::Other(anyhow::anyhow!("nobody supervises this worker"))),
        Err(err) => return Err(err.into()),
    };
    let mut step = restore(&worker, &mut journal)?;
    if args.steps == 0 {
        return serve(&worker, args, &mut journal);
    }
    while step < args.steps {
        std::thread::sleep(Duration::from_millis(args.step_ms));
        step += 1;
        journal.put(WorkKind::Stepped, step, "");
        let wanted = worker.report(step, &[("step", step as f64)])?;
        if step % args.save_every == 0 && step < args.steps || wanted.stop {
            save(&worker, step, &mut journal)?;
        }
        if wanted.stop {
            return Err(WorkerError::Stopped);
        }
    }
    farewell(&worker, step, &mut journal)?;
    journal.put(WorkKind::Ended, step, "");
    Ok(())
}

/// The step to go on from.
fn restore(worker: &Worker, journal: &mut Journal) -> Result<u64, WorkerError> {
    let Some(dir) = worker.restore_dir() else { return Ok(0) };
    let step = worker.restore_step();
    let bytes = std::fs::read(dir.join(STATE_FILE)).map_err(|err| err.to_string());
    let wrong = match bytes {
        Ok(bytes) if bytes == state(worker.job_name(), worker.rank(), step) => String::new(),
        Ok(bytes) => format!("what came back for step {step} ({} bytes) is not what was saved", bytes.len()),
        Err(err) => format!("the state of step {step} did not come back: {err}"),
    };
    journal.put(WorkKind::Restored, step, &wrong);
    if wrong.is_empty() { Ok(step) } else { Err(WorkerError::State(wrong)) }
}

fn save(worker: &Worker, step: u64, journal: &mut Journal) -> Result<(), WorkerError> {
    let bytes = state(worker.job_name(), worker.rank(), step);
    match worker.save_parts(step, &[(STATE_FILE, &bytes)]) {
        Ok(_) => journal.put(WorkKind::Saved, step, ""),
        Err(err) if err.is_fenced() => return Err(WorkerError::Fenced),
        // A full disk, or earlier ones in the way: the training goes on.
        Err(err) => eprintln!("chaos worker: step {step} is not saved: {err}"),
    }
    Ok(())
}

/// The last step, sealed if that can be had in time.
fn farewell(worker: &Worker, step: u64, journal: &mut Journal) -> Result<(), WorkerError> {
    let bytes = state(worker.job_name(), worker.rank(), step);
    let staged = match worker.save_parts_in_turn(step, &[(STATE_FILE, &bytes)]) {
        Ok(staged) => staged,
        Err(err) if err.is_fenced() => return Err(WorkerError::Fenced),
        Err(err) => {
            eprintln!("chaos worker: the last step is not saved: {err}");
            return Ok(());
        }
    };
    let saved = match worker.wait_saved(&staged, SEAL_MAX) {
        Ok(saved) => saved,
        Err(err) if err.is_fenced() => return Err(WorkerError::Fenced),
        Err(err) => {
            eprintln!("chaos worker: the last step is not on the disk: {err}");
            return Ok(());
        }
    };
    match worker.wait_sealed(&saved.checkpoint, SEAL_MAX) {
        Ok(outcome) => {
            eprintln!("chaos worker: {} is {outcome:?}", saved.checkpoint);
            journal.put(WorkKind::Sealed, step, "");
        }
        Err(err) if err.is_fenced() => return Err(WorkerError::Fenced),
        Err(err) => eprintln!("chaos worker: {err}"),
    }
    Ok(())
}

/// A service: nothing to save, runs until it is ended.
fn serve(worker: &Worker, args: &WorkerArgs, journal: &mut Journal) -> Result<(), WorkerError> {
    worker
        .ready()
        .map_err(|err| if err.is_fenced() { WorkerError::Fenced } else { WorkerError::Other(err.into()) })?;
    for step in 1.. {
        std::thread::sleep(Duration::from_millis(args.step_ms));
        journal.put(WorkKind::Stepped, step, "");
        if worker.report(step, &[])?.stop {
            return Err(WorkerError::Stopped);
        }
    }
    Ok(())
}

/// The whole state at a step: anybody can tell whether it is right.
fn state(name: &str, rank: u32, step: u64) -> Vec<u8> {
    let mut rng = Rng::fork(step, &format!("{name}/{rank}"));
    let mut bytes = Vec::with_capacity(STATE_BYTES + 8);
    bytes.extend(step.to_le_bytes());
    while bytes.len() < STATE_BYTES {
        bytes.extend(rng.next().to_le_bytes());
    }
    bytes
}

/// One file for each process; a line is one write, so that a kill leaves whole lines, or one torn last one.
struct Journal {
    file: File,
    line: Work,
}

impl Journal {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let (attempt, pid) = (text("OUTLAST_ATTEMPT"), std::process::id());
        let path = folder.join(format!("{}-{}-{pid}.jsonl", attempt.replace('/', "_"), text("RANK")));
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let line = Work {
            at: 0,
            name: text("OUTLAST_JOB_NAME"),
            attempt,
            rank: text("RANK").parse().unwrap_or(0),
            pid,
            did: WorkKind::Started,
            step: 0,
            wrong: String::new(),
        };
        Ok(Self { file, line })
    }

    fn put(&mut self, did: WorkKind, step: u64, wrong: &str) {
        let line = Work { at: now_ns(), did, step, wrong: wrong.to_owned(), ..self.line.clone() };
        let mut text = serde_json::to_string(&line).expect("plain data");
        text.push('\n');
        // Shared memory that is full loses evidence, not the run: the checkers then find the step missing.
        let _ = self.file.write_all(text.as_bytes());
    }
}

/// All lines that workers wrote; a torn last one of a killed worker is left out.
pub(crate) fn read_journals(folder: &Path) -> Vec<Work> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let texts = files.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let mut lines: Vec<Work> = texts
        .flat_map(|text| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>())
        .collect();
    lines.sort_by_key(|line| line.at);
    lines
}

impl From<ConnectError> for WorkerError {
    fn from(err: ConnectError) -> Self {
        if err.is_fenced() { WorkerError::Fenced } else { WorkerError::Other(err.into()) }
    }
}

impl From<ReportError> for WorkerError {
    fn from(err: ReportError) -> Self {
        if err.is_fenced() { WorkerError::Fenced } else { WorkerError::Other(err.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_known_by_job_rank_and_step() {
        let one = state("p-1", 0, 7);
        assert_eq!(one, state("p-1", 0, 7));
        for other in [state("p-2", 0, 7), state("p-1", 1, 7), state("p-1", 0, 8)] {
            assert_ne!(one, other);
        }
    }
}
