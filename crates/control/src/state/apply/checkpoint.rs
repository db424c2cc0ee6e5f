//! Opening, aborting, quarantining and pinning checkpoints, and the bound on their records.

use outlast_types::spec::OnBusy;
use outlast_types::{AttemptId, CheckpointSeq, JobId};

use super::attempt_end::reset_budgets;
use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, exhausted, fenced, not_found};
use crate::state::{
    AttemptPhase, Checkpoint, CheckpointState, ClusterState, Event, Incarnation, Job, Limits, Refusal,
    Response,
};

impl ClusterState {
    pub(super) fn open_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        step: u64,
        in_turn: bool,
    ) -> Handled {
        let attempt = self.current_attempt(&id)?;
        if attempt.phase == AttemptPhase::Stopping {
            return Err(fenced(format!("{id} is being stopped")));
        }
        let world_size = attempt.world_size();
        let is_requested = attempt.checkpoint_requested;
        let was_skipped = attempt.skipped_step.is_some_and(|skipped| step <= skipped);
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
        if was_skipped && !in_turn {
            return Ok(Response::CheckpointSkipped { step });
        }
        if !self.make_room(cx, id, &open, in_turn, is_requested)? {
            if let Some(attempt) = self.attempt_mut(&id) {
                attempt.skipped_step = attempt.skipped_step.max(Some(step));
            }
            return Ok(Response::CheckpointSkipped { step });
        }
        let job = self.job_mut(id.group.job)?;
        let seq = CheckpointSeq(job.next_checkpoint);
        job.next_checkpoint += 1;
        job.checkpoints.insert(seq, new_checkpoint(cx, seq, id, step, world_size));
        cx.tell(Event::CheckpointOpened { attempt: id, seq, step });
        self.trim_checkpoints(cx, id.group.job);
        Ok(Response::CheckpointOpened(seq))
    }

    /// Whether one more checkpoint of the attempt may be opened beside these. What is stuck, or what the last words of a
    /// worker that has to leave come after, is given up for it.
    fn make_room(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        open: &[(CheckpointSeq, u64)],
        in_turn: bool,
        is_requested: bool,
    ) -> Result<bool, Refusal> {
        let surplus = (open.len() + 1).saturating_sub(Limits::OPEN_CHECKPOINTS_MAX);
        let job = self.job_mut(id.group.job)?;
        let is_stuck = |(seq, _): &(CheckpointSeq, u64)| {
            let opened_at = job.checkpoints.get(seq).map(|open| open.opened_at);
            opened_at.is_some_and(|at| cx.at.since(at) >= Limits::OPEN_CHECKPOINT_STUCK_MS)
        };
        if !is_requested && open.iter().take(surplus).any(|open| !is_stuck(open)) {
            if in_turn || job.spec.checkpoint.on_busy == OnBusy::Wait {
                return Err(exhausted(format!("{} checkpoints of {id} are being written", open.len())));
            }
            return Ok(false);
        }
        for (seq, _) in open.iter().take(surplus) {
            abort(cx, job.id, job.checkpoints.get_mut(seq), "superseded");
        }
        Ok(true)
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
        (job, seq): (JobId, CheckpointSeq),
        reason: &str,
        incarnation: Option<Incarnation>,
    ) -> Handled {
        self.check_planned(incarnation)?;
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
        (job, seq): (JobId, CheckpointSeq),
        reason: &str,
        incarnation: Option<Incarnation>,
    ) -> Handled {
        self.check_planned(incarnation)?;
        match self.checkpoint_mut(job, seq)?.state {
            CheckpointState::Quarantined => Ok(Response::Done),
            CheckpointState::Sealed => {
                self.quarantine_if_sealed(cx, job, seq, reason);
                self.forgive_failures_after(job, seq);
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
        self.drop_orders(job, seq, |_, _| true);
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

    /// Failures that came of a checkpoint that is set aside say nothing of the next try, which starts elsewhere.
    fn forgive_failures_after(&mut self, job: JobId, seq: CheckpointSeq) {
        let Some(group) = self.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq)) else { return };
        let group = group.attempt.group;
        let Some(group) = self.group_mut(&group) else { return };
        if group.newest().is_some_and(|attempt| attempt.restore.from == Some(seq)) {
            reset_budgets(group);
        }
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

    /// Keeps the newest records of what is over, and as many of what is quarantined: those have bytes that a person may want
    /// to look at, so what is merely over does not push them out. A quarantined one whose record leaves is retired: nobody
    /// could find its bytes any more.
    pub(super) fn trim_checkpoints(&mut self, cx: &mut Context<'_>, job: JobId) {
        let Some(record) = self.jobs.get_mut(&job) else { return };
        let is_over =
            |one: &Checkpoint| matches!(one.state, CheckpointState::Aborted | CheckpointState::Retired);
        surplus(record, is_over).into_iter().for_each(|seq| {
            record.checkpoints.remove(&seq);
        });
        let is_bad = |one: &Checkpoint| one.state == CheckpointState::Quarantined && !one.pinned;
        for seq in surplus(record, is_bad) {
            record.checkpoints.remove(&seq);
            cx.tell(Event::CheckpointRetired { job, seq });
        }
    }
}

/// The oldest of these checkpoints, beyond as many as are kept.
fn surplus(job: &Job, is_meant: impl Fn(&Checkpoint) -> bool) -> Vec<CheckpointSeq> {
    let meant: Vec<CheckpointSeq> =
        job.checkpoints.values().filter(|one| is_meant(one)).map(|one| one.seq).collect();
    let count = meant.len().saturating_sub(Limits::OLD_CHECKPOINTS_KEPT);
    meant.into_iter().take(count).collect()
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
        stale: false,
        stored_at: None,
        reason: None,
    }
}
