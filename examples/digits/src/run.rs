//! The program: gather, train, finish. Owns the order of things; each step's parts are elsewhere.

use std::path::Path;
use std::time::Duration;

use outlast_worker::{ConnectError, ReportError, SaveError, WaitError, Worker};
use serde::Serialize;

use crate::checkpoint::StateError;
use crate::gang::{Gang, GangError, Hello, Wish};
use crate::settings::{Settings, SettingsError};
use crate::supervision::Supervision;
use crate::trainer::Trainer;

/// Reading all held-out rows costs about as much as one step, so not at each.
const JUDGE_EVERY: u64 = 15;

const USAGE: &str = "usage: digits\n\nTrains a small network on handwritten digits. Settings come from the environment: \
DIGITS_EPOCHS (30), DIGITS_BATCH (32), DIGITS_SEED (7), DIGITS_STEP_MS (0), DIGITS_RESULT (a file), and what Outlast \
sets for its workers.\nExit codes: 0 done, 1 failed, 2 usage or settings, 10 turned away or fenced, 11 lost another \
rank, 12 unusable training state, 13 stopped on request after a checkpoint.";

/// Failed to train.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "unknown argument {argument:?}; digits takes none, its settings come from the environment (see --help)"
    )]
    Usage { argument: String },
    #[error("bad settings")]
    Settings(#[from] SettingsError),
    #[error("failed to become known to the agent")]
    Connect(#[from] ConnectError),
    #[error("failed to report")]
    Report(#[from] ReportError),
    #[error("failed to hand over the checkpoint")]
    Save(#[from] SaveError),
    #[error("failed to wait for the checkpoint")]
    Wait(#[from] WaitError),
    #[error("failed to work with the other ranks")]
    Gang(#[from] GangError),
    #[error("failed to keep the training state")]
    State(#[from] StateError),
    #[error("cannot write the result to {path}")]
    Result {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// Not a success: the job is not done, and must not look so.
    #[error("stopped on request after a checkpoint at step {step} of {steps_total}")]
    Stopped { step: u64, steps_total: u64 },
}

impl RunError {
    fn is_fenced(&self) -> bool {
        match self {
            RunError::Gang(GangError::TurnedAway { .. }) => true,
            RunError::Connect(err) => err.is_fenced(),
            RunError::Report(err) => err.is_fenced(),
            RunError::Save(err) => err.is_fenced(),
            RunError::Wait(err) => err.is_fenced(),
            _ => false,
        }
    }
}

/// The process's exit code for an error of [`run`]: 2 usage or settings, 10 turned away or fenced, 11 lost another rank,
/// 12 unusable training state, 13 stopped on request, 1 anything else.
pub fn exit_code(err: &anyhow::Error) -> u8 {
    match err.downcast_ref::<RunError>() {
        Some(err) if err.is_fenced() => 10,
        Some(RunError::Usage { .. } | RunError::Settings(_)) => 2,
        Some(RunError::Gang(_)) => 11,
        Some(RunError::State(_)) => 12,
        Some(RunError::Stopped { .. }) => 13,
        _ => 1,
    }
}

/// What rank 0 writes to `DIGITS_RESULT`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunResult {
    pub steps: u64,
    /// On held-out rows, 0 to 1.
    pub accuracy: f64,
    /// BLAKE3 of the final weights, hex.
    pub digest: String,
    pub world_size: u32,
    pub seed: u64,
}

/// Runs one rank to its end. Errors are [`RunError`]s; see [`exit_code`].
pub fn run(args: &[String]) -> anyhow::Result<()> {
    match args.first().map(String::as_str) {
        None => Ok(train()?),
        Some("--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        Some(argument) => Err(RunError::Usage { argument: argument.to_owned() }.into()),
    }
}

fn train() -> Result<(), RunError> {
    let settings = Settings::from_env()?;
    let mut supervision = Supervision::new(Worker::connect()?);
    let mut trainer = supervision.restore(&settings)?;
    let hello = Hello::new(
        &settings.attempt,
        settings.rank,
        settings.recipe.world_size,
        trainer.step(),
        trainer.common_digest(),
    );
    let mut gang = Gang::gather(&hello, &settings.master)?;
    steps(&settings, &mut supervision, &mut gang, &mut trainer)?;
    supervision.farewell(&trainer)?;
    supervision.check_current()?;
    finish(&settings, &trainer)
}

fn steps(
    settings: &Settings,
    supervision: &mut Supervision,
    gang: &mut Gang,
    trainer: &mut Trainer,
) -> Result<(), RunError> {
    let mut accuracy = trainer.accuracy();
    let mut wish = Wish::default();
    while trainer.step() < trainer.steps_total() {
        let (total, wanted) = gang.exchange(trainer.step() + 1, trainer.share(), wish)?;
        let epoch = trainer.epoch();
        let loss = trainer.apply(&total);
        std::thread::sleep(Duration::from_millis(settings.step_ms));
        if trainer.step().is_multiple_of(JUDGE_EVERY) || trainer.step() == trainer.steps_total() {
            accuracy = trainer.accuracy();
        }
        if settings.rank == 0 && trainer.epoch() > epoch {
            tell_epoch(trainer, loss, accuracy);
        }
        wish = supervision.report(trainer.step(), loss, accuracy)?;
        if wanted.checkpoint || wanted.stop {
            supervision.save(trainer)?;
            // Fulfilled just now; a newer wish comes with the next report.
            wish.checkpoint = false;
        }
        if wanted.stop && trainer.step() < trainer.steps_total() {
            supervision.farewell(trainer)?;
            return Err(RunError::Stopped { step: trainer.step(), steps_total: trainer.steps_total() });
        }
    }
    Ok(())
}

fn tell_epoch(trainer: &Trainer, loss: f64, accuracy: f64) {
    eprintln!(
        "digits: epoch {}/{} step {}/{} loss {loss:.4} accuracy {accuracy:.4}",
        trainer.epoch(),
        trainer.recipe.epochs,
        trainer.step(),
        trainer.steps_total(),
    );
}

fn finish(settings: &Settings, trainer: &Trainer) -> Result<(), RunError> {
    if settings.rank != 0 {
        return Ok(());
    }
    let result = RunResult {
        steps: trainer.step(),
        accuracy: trainer.accuracy(),
        digest: trainer.weights_digest(),
        world_size: settings.recipe.world_size,
        seed: settings.recipe.seed,
    };
    println!("digits: done steps={} accuracy={:.4} digest={}", result.steps, result.accuracy, result.digest);
    match &settings.result {
        Some(path) => write_result(path, &result)
            .map_err(|source| RunError::Result { path: path.display().to_string(), source }),
        None => Ok(()),
    }
}

/// Whole or not at all: whoever waits for the file reads no half of it.
fn write_result(path: &Path, result: &RunResult) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, serde_json::to_vec_pretty(result)?)?;
    std::fs::rename(&partial, path)
}
