//! The example under Outlast: restore, report, save, say goodbye. Without Outlast each of these is nothing.

use std::time::{Duration, Instant};

use outlast_worker::{ReportError, SaveError, SealOutcome, Staged, WaitError, Worker};

use crate::checkpoint::file_name;
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
    /// The newest step that is in a checkpoint, and what was handed over where that is not yet known to be sealed.
    saved: Option<(u64, Option<Staged>)>,
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
        self.save_with(trainer, Worker::save_parts)
    }

    fn save_with(&mut self, trainer: &Trainer, save: Save) -> Result<(), RunError> {
        let Some(worker) = &self.worker else { return Ok(()) };
        match hand_over(worker, trainer, save) {
            Ok(staged) => {
                self.saved = Some((trainer.step(), Some(staged)));
                self.not_before = None;
                Ok(())
            }
            Err(err) if err.is_fenced() => Err(err.into()),
            // Asked again at the next step.
            Err(err) if err.is_skipped() => Ok(()),
            Err(err) => {
                eprintln!("digits: step {} is not saved: {:#}", trainer.step(), anyhow::Error::new(err));
                self.not_before = Some(Instant::now() + SAVE_AGAIN_AFTER);
                Ok(())
            }
        }
    }

    /// Sees to it that the newest step is in a sealed checkpoint, within bounds.
    pub(crate) fn farewell(&mut self, trainer: &Trainer) -> Result<(), RunError> {
        let is_newest = self.saved.as_ref().is_some_and(|(step, _)| *step == trainer.step());
        if let Some((_, None)) = self.saved
            && is_newest
        {
            return Ok(());
        }
        let mut checkpoint = if is_newest { self.written()? } else { None };
        if checkpoint.is_none() {
            self.saved = None;
            self.save_with(trainer, Worker::save_parts_in_turn)?;
            checkpoint = self.written()?;
        }
        let (Some(worker), Some(checkpoint)) = (&self.worker, &checkpoint) else { return Ok(()) };
        let step = trainer.step();
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

    /// The newest checkpoint's name, once this rank's part is on the disk; none where it was skipped or failed after all.
    fn written(&self) -> Result<Option<String>, RunError> {
        let (Some(worker), Some((_, Some(staged)))) = (&self.worker, &self.saved) else { return Ok(None) };
        match worker.wait_saved(staged, SEAL_MAX) {
            Ok(saved) => Ok(Some(saved.checkpoint)),
            Err(err) if err.is_fenced() => Err(err.into()),
            Err(err) => {
                eprintln!("digits: step {} is not saved: {:#}", staged.step, anyhow::Error::new(err));
                Ok(None)
            }
        }
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

/// How the state is handed over: now or never, or in its turn.
type Save = fn(&Worker, u64, &[(&str, &[u8])]) -> Result<Staged, SaveError>;

/// Hands a copy of the state over; the training may go on with its own.
fn hand_over(worker: &Worker, trainer: &Trainer, save: Save) -> Result<Staged, SaveError> {
    save(worker, trainer.step(), &[(&file_name(trainer.rank), &trainer.encode())])
}
