//! Opening, aborting, quarantining and pinning checkpoints, and the bound on their records.

use outlast_types::{AttemptId, CheckpointSeq, JobId};

use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, fenced, not_found};
use crate::state::{
    AttemptPhase, Checkpoint, CheckpointState, ClusterState, Event, Limits, Refusal, Response,
};

impl ClusterState {
    pub(super) fn open_checkpoint(&mut self, cx: &mut Context<'_>, id: AttemptId, step: u64) -> Handled {
        let attempt = self.current_attempt(&id)?;
        if attempt.phase == AttemptPhase::Stopping {
            return Err(fenced(format!("{id} is being stopped")));
        }
        let world_size = attempt.world_size();
        let job = self.job_mut(id.group.job)?;
        let of_attempt = |checkpoint: &&Checkpoint| checkpoint.attempt == id;
        let open: Vec<(CheckpointSeq, u64)> = job
            .checkpoints
            .values()
            .filter(of_attempt)
            .filter(|checkpoint| checkpoint.state == CheckpointState::Open)
            .map(|checkpoint| (checkpoint.seq, checkpoint.step))
            .collect();
        if let Some((seq, _)) = open.iter().find(|(_, open)| *open == step) {
            return Ok(Response::CheckpointOpened(*seq));
        }
        if let Some(sealed) = newest_sealed_step(job.checkpoints.values().filter(of_attempt))
            && step <= sealed
        {
            return Err(conflict(format!("step {sealed} of {id} is sealed already; {step} is not newer")));
        }
        let surplus = (open.len() + 1).saturating_sub(Limits::OPEN_CHECKPOINTS_MAX);
        for (seq, _) in open.into_iter().take(surplus) {
            abort(cx, job.id, job.checkpoints.get_mut(&seq), "superseded");
        }
        let seq = CheckpointSeq(job.next_checkpoint);
        job.next_checkpoint += 1;
        job.checkpoints.insert(seq, new_checkpoint(cx, seq, id, step, world_size));
        cx.tell(Event::CheckpointOpened { attempt: id, seq, step });
        self.trim_checkpoints(cx, id.group.job);
        Ok(Response::CheckpointOpened(seq))
    }

    pub(super) fn checkpoint_mut(
        &mut self,
        job: JobId,
        seq: CheckpointSeq,
    ) -> Result<&mut Checkpoint, Refusal> {
        let checkpoints = &mut self.job_mut(job)?.checkpoints;
        checkpoints.get_mut(&seq).ok_or_else(|| not_found(format!("checkpoint {seq} of job {job}")))
    }

    pub(super) fn abort_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        seq: CheckpointSeq,
        reason: &str,
    ) -> Handled {
        let checkpoint = self.checkpoint_mut(job, seq)?;
        match checkpoint.state {
            CheckpointState::Aborted => return Ok(Response::Done),
            CheckpointState::Open => abort(cx, job, Some(checkpoint), &bounded(reason, REASON_BYTES_MAX)),
            _ => return Err(conflict(format!("{seq} is not open: only an open checkpoint can be aborted"))),
        }
        self.trim_checkpoints(cx, job);
        Ok(Response::Done)
    }

    pub(super) fn quarantine_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        seq: CheckpointSeq,
        reason: &str,
    ) -> Handled {
        match self.checkpoint_mut(job, seq)?.state {
            CheckpointState::Quarantined => Ok(Response::Done),
            CheckpointState::Sealed => {
                self.quarantine_if_sealed(cx, job, seq, reason);
                Ok(Response::Done)
            }
            _ => Err(conflict(format!("{seq} is not sealed: only a sealed checkpoint can be quarantined"))),
        }
    }

    pub(super) fn quarantine_if_sealed(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        seq: CheckpointSeq,
        reason: &str,
    ) {
        let Ok(checkpoint) = self.checkpoint_mut(job, seq) else { return };
        if !checkpoint.is_sealed() {
            return;
        }
        let reason = bounded(reason, REASON_BYTES_MAX);
        checkpoint.state = CheckpointState::Quarantined;
        checkpoint.reason = Some(reason.clone());
        cx.tell(Event::CheckpointQuarantined { job, seq, reason });
        self.trim_checkpoints(cx, job);
    }

    pub(super) fn pin_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        seq: CheckpointSeq,
        pinned: bool,
    ) -> Handled {
        let checkpoint = self.checkpoint_mut(job, seq)?;
        if pinned && !checkpoint.is_sealed() {
            return Err(conflict(format!("{seq} is not sealed: only a sealed checkpoint can be pinned")));
        }
        if checkpoint.pinned != pinned {
            checkpoint.pinned = pinned;
            cx.tell(Event::CheckpointPinned { job, seq, pinned });
        }
        Ok(Response::Done)
    }

    /// Keeps the newest records of what is over. A quarantined one whose record leaves is retired: nobody could find
    /// its bytes any more.
    pub(super) fn trim_checkpoints(&mut self, cx: &mut Context<'_>, job: JobId) {
        let Some(record) = self.jobs.get_mut(&job) else { return };
        let is_old = |checkpoint: &&Checkpoint| {
            !matches!(checkpoint.state, CheckpointState::Open | CheckpointState::Sealed)
        };
        let old: Vec<(CheckpointSeq, CheckpointState)> = record
            .checkpoints
            .values()
            .filter(is_old)
            .map(|checkpoint| (checkpoint.seq, checkpoint.state))
            .collect();
        let surplus = old.len().saturating_sub(Limits::OLD_CHECKPOINTS_KEPT);
        for (seq, state) in old.into_iter().take(surplus) {
            record.checkpoints.remove(&seq);
            if state == CheckpointState::Quarantined {
                cx.tell(Event::CheckpointRetired { job, seq });
            }
        }
    }
}

/// The newest step that an attempt has sealed: kept in view by whatever became of the checkpoint since.
pub(super) fn newest_sealed_step<'a>(checkpoints: impl Iterator<Item = &'a Checkpoint>) -> Option<u64> {
    checkpoints.filter(|checkpoint| checkpoint.sealed_at.is_some()).map(|checkpoint| checkpoint.step).max()
}

fn abort(cx: &mut Context<'_>, job: JobId, checkpoint: Option<&mut Checkpoint>, reason: &str) {
    let Some(checkpoint) = checkpoint else { return };
    checkpoint.state = CheckpointState::Aborted;
    checkpoint.reason = Some(reason.to_owned());
    cx.tell(Event::CheckpointAborted { job, seq: checkpoint.seq, reason: reason.to_owned() });
}

fn new_checkpoint(
    cx: &Context<'_>,
    seq: CheckpointSeq,
    attempt: AttemptId,
    step: u64,
    world_size: u32,
) -> Checkpoint {
    Checkpoint {
        seq,
        step,
        attempt,
        world_size,
        state: CheckpointState::Open,
        opened_at: cx.at,
        sealed_at: None,
        shards: Vec::new(),
        manifest_root: None,
        durability: None,
        degraded: false,
        proven: false,
        pinned: false,
        reason: None,
    }
}
