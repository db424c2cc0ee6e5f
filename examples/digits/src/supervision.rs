//! The example under Outlast: restore, report, save, say goodbye. Without Outlast each of these is nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outlast_worker::{ReportError, SaveError, Saved, SealOutcome, WaitError, Worker};

use crate::data::Dataset;
use crate::gang::Wish;
use crate::run::RunError;
use crate::settings::Settings;
use crate::trainer::Trainer;

/// Training goes on when a save fails; the next try comes only after this, since a try may wait 30 s for the agent.
const SAVE_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// A seal takes a second or two; a job that has its result does not wait for a cluster without a leader for ever.
const SEAL_MAX: Duration = Duration::from_secs(60);
/// A report is answered from the agent's memory.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// The worker's side towards its agent.
#[derive(Debug)]
pub(crate) struct Supervision {
    worker: Option<Worker>,
    not_before: Option<Instant>,
    /// The newest step that is known to be in a checkpoint, and that checkpoint's name where it is not yet known to be
    /// sealed.
    saved: Option<(u64, Option<String>)>,
    /// The newest report: step, loss, accuracy.
    told: Option<(u64, f64, f64)>,
}

impl Supervision {
    pub(crate) fn new(worker: Option<Worker>) -> Self {
        Self { worker, not_before: None, saved: None, told: None }
    }

    /// The training as it was left, or from the beginning.
    pub(crate) fn restore(&mut self, settings: &Settings) -> Result<Trainer, RunError> {
        let (recipe, rank, data) = (settings.recipe.clone(), settings.rank, Dataset::embedded());
        let Some(dir) = self.worker.as_ref().and_then(Worker::restore_dir) else {
            return Ok(Trainer::new(recipe, rank, data));
        };
        let trainer = Trainer::read(dir, recipe, rank, data)?;
        eprintln!("digits: rank {rank} goes on from step {}", trainer.step());
        self.saved = Some((trainer.step(), None));
        Ok(trainer)
    }

    /// Tells the step and learns what is wanted.
    pub(crate) fn report(&mut self, step: u64, loss: f64, accuracy: f64) -> Result<Wish, RunError> {
        let Some(worker) = &self.worker else { return Ok(Wish::default()) };
        self.told = Some((step, loss, accuracy));
        let wanted = worker.report(step, &[("loss", loss), ("accuracy", accuracy)])?;
        let may_save = self.not_before.is_none_or(|time| Instant::now() >= time);
        Ok(Wish { checkpoint: wanted.checkpoint_due && may_save, stop: wanted.stop })
    }

    /// Saves this rank's part. Only a fenced attempt ends here; anything else is told, and training goes on.
    pub(crate) fn save(&mut self, trainer: &Trainer) -> Result<(), RunError> {
        self.save_with(trainer, Worker::save)
    }

    fn save_with(&mut self, trainer: &Trainer, save: Save) -> Result<(), RunError> {
        let Some(worker) = &self.worker else { return Ok(()) };
        match hand_over(worker, trainer, save) {
            Ok(checkpoint) => {
                self.saved = Some((trainer.step(), Some(checkpoint)));
                self.not_before = None;
                Ok(())
            }
            Err(RunError::Save(SaveError::Call(call))) if call.is_fenced() => {
                Err(SaveError::Call(call).into())
            }
            // Asked again at the next step.
            Err(RunError::Save(err)) if err.is_skipped() => Ok(()),
            Err(err) => {
                eprintln!("digits: step {} is not saved: {:#}", trainer.step(), anyhow::Error::new(err));
                self.not_before = Some(Instant::now() + SAVE_AGAIN_AFTER);
                Ok(())
            }
        }
    }

    /// Sees to it that the newest step is in a sealed checkpoint, within bounds.
    pub(crate) fn farewell(&mut self, trainer: &Trainer) -> Result<(), RunError> {
        if self.saved.as_ref().is_none_or(|(step, _)| *step != trainer.step()) {
            self.save_with(trainer, Worker::save_in_turn)?;
        }
        let (Some(worker), Some((step, Some(checkpoint)))) = (&self.worker, &self.saved) else {
            return Ok(());
        };
        match worker.wait_sealed(checkpoint, SEAL_MAX) {
            Ok(SealOutcome::Sealed) => {}
            Ok(SealOutcome::GivenUp { reason }) => {
                eprintln!("digits: the checkpoint of step {step} was given up: {reason}");
            }
            Err(WaitError::Call(call)) if call.is_fenced() => return Err(WaitError::Call(call).into()),
            Err(err) => eprintln!("digits: {:#}", anyhow::Error::new(err)),
        }
        Ok(())
    }

    /// Asks the agent once more whether this attempt is the current one, before anything is claimed in its name. An agent
    /// that is away does not answer, and stops no job.
    pub(crate) fn check_current(&self) -> Result<(), ReportError> {
        let (Some(worker), Some((step, loss, accuracy))) = (&self.worker, self.told) else { return Ok(()) };
        worker.report(step, &[("loss", loss), ("accuracy", accuracy)])?;
        worker.flush(FAREWELL_MAX);
        worker.wanted().map(|_| ())
    }
}

/// How a folder is handed over: now or never, or in its turn.
type Save = fn(&Worker, u64, &Path) -> Result<Saved, SaveError>;

/// Writes a copy beside the training and hands it over; returns the checkpoint's name. The copy goes away either way.
fn hand_over(worker: &Worker, trainer: &Trainer, save: Save) -> Result<String, RunError> {
    let step_dir: PathBuf = worker.checkpoint_dir().join(format!("step-{}", trainer.step()));
    // Each rank hands over a folder of its own, also where two of them share a node.
    let dir = step_dir.join(format!("rank-{}", trainer.rank));
    trainer.write(&dir)?;
    let saved = save(worker, trainer.step(), &dir);
    let removed = std::fs::remove_dir_all(&dir);
    if let Err(err) = removed {
        eprintln!("digits: {} stays behind: {err}", dir.display());
    }
    // Fails while another rank's folder is still in it; the last one takes it away.
    let _ = std::fs::remove_dir(&step_dir);
    Ok(saved?.checkpoint)
}
