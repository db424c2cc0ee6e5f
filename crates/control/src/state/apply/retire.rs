//! `RetireCheckpoint`: the only way in which bytes of a living job may go (invariant 36).

use outlast_types::{CheckpointSeq, Durability, JobId};

use super::{Context, Handled, conflict, not_found};
use crate::planted::planted;
use crate::state::{
    Attempt, Checkpoint, CheckpointState, ClusterState, Event, Group, Incarnation, Refusal, Response,
};

/// Good checkpoints beyond `keep` that stay while the wanted durability (a second failure domain, the object store) is out
/// of reach: an outage of hours must not fill the disks.
const SURPLUS: usize = 8;

impl ClusterState {
    pub(super) fn retire_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        seq: CheckpointSeq,
        incarnation: Option<Incarnation>,
    ) -> Handled {
        self.check_planned(incarnation)?;
        if self.checkpoint_mut(job, seq)?.state == CheckpointState::Retired {
            return Ok(Response::Done);
        }
        self.check_retire(job, seq, incarnation.is_some())?;
        self.drop_orders(job, seq, |_, _| true);
        let checkpoint = self.checkpoint_mut(job, seq)?;
        checkpoint.state = CheckpointState::Retired;
        cx.tell(Event::CheckpointRetired { job, seq });
        self.trim_checkpoints(cx, job);
        Ok(Response::Done)
    }

    /// Whether a checkpoint may be retired now; asked by `apply` and, before it proposes, by the planner.
    ///
    /// # Errors
    /// Says what keeps it.
    pub fn may_retire(&self, job: JobId, seq: CheckpointSeq) -> Result<(), Refusal> {
        self.check_retire(job, seq, true)
    }

    /// `by_now`: newer ones count by what is true of them now. A command of a log from before leaders named themselves in
    /// it was decided by the durability at the seal, and what it did then cannot be undone: bytes are gone.
    fn check_retire(&self, job: JobId, seq: CheckpointSeq, by_now: bool) -> Result<(), Refusal> {
        let record = self.jobs.get(&job).ok_or_else(|| not_found(format!("job {job}")))?;
        let checkpoint = record
            .checkpoints
            .get(&seq)
            .ok_or_else(|| not_found(format!("checkpoint {seq} of job {job}")))?;
        if !checkpoint.is_sealed() {
            return Err(conflict(format!("{seq} is not sealed")));
        }
        if checkpoint.pinned {
            return Err(conflict(format!("{seq} is pinned")));
        }
        let group = checkpoint.attempt.group.index;
        let restores = |attempt: &Attempt| attempt.restore.from == Some(seq);
        if record.group(group).and_then(Group::current).is_some_and(restores) {
            return Err(conflict(format!("the current attempt restores from {seq}")));
        }
        let newer: Vec<&Checkpoint> = record
            .sealed_of(group)
            .into_iter()
            .filter(|other| other.recency() > checkpoint.recency() && self.is_good(other))
            .collect();
        let keep = record.spec.checkpoint.keep.max(1) as usize;
        let keep = if planted!(KeepTooFew) { 1 } else { keep };
        // What it was sealed at may be true no more: one that lost a holder since is not what the policy wants.
        let wanted = self.durability_wanted(&record.spec).min(Durability::Replicated);
        let is_whole =
            |other: &&&Checkpoint| !other.degraded && (!by_now || self.durability_now(other) >= Some(wanted));
        let whole: Vec<&Checkpoint> = newer.iter().filter(is_whole).copied().collect();
        let (newer, needed) = if by_now && checkpoint.degraded && whole.len() < keep {
            // The wanted level may be out of reach for days: then those that are no less safe than this one count. A whole
            // one whose other copies are away stays: they may come back.
            let own = self.durability_now(checkpoint);
            let as_safe = newer.into_iter().filter(|other| self.durability_now(other) >= own);
            (as_safe.collect(), keep.saturating_add(SURPLUS))
        } else {
            (whole, keep)
        };
        if newer.len() < needed {
            return Err(conflict(format!(
                "{} good checkpoints are newer than {seq}, {needed} are needed",
                newer.len()
            )));
        }
        if !newer.iter().any(|other| other.proven) && !planted!(RetireWithoutProof) {
            return Err(conflict(format!("no newer checkpoint than {seq} is proven yet")));
        }
        let stored = newer.iter().filter(|other| other.stored_at.is_some()).count();
        let wants_store = record.spec.checkpoint.durability == Some(Durability::Stored);
        if wants_store && stored < keep && newer.len() < keep.saturating_add(SURPLUS) {
            return Err(conflict(format!(
                "{stored} checkpoints newer than {seq} are in the object store, {keep} are needed"
            )));
        }
        Ok(())
    }
}
