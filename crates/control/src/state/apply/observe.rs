//! `Observe`: what an agent saw, numbered per registration; repeats are skipped, gaps refused (invariant 31).

use outlast_types::{AttemptId, Cause, CheckpointSeq, Digest, JobId, JobKind, NodeId, RegistrationId};

use super::shards::ShardRef;
use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, invalid};
use crate::state::{
    Assignment, AssignmentPhase, Attempt, AttemptPhase, CheckpointState, ClusterState, Event, ExitRecord,
    JobState, Observation, Outcome, Response,
};

/// A node name and a port, or an address in full.
const ADDRESS_BYTES_MAX: usize = 512;

impl ClusterState {
    pub(super) fn observe(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        registration: RegistrationId,
        first: u64,
        observations: &[Observation],
    ) -> Handled {
        let observed = self.answering(node, registration)?.observed;
        if first > observed.saturating_add(1) {
            return Err(conflict(format!(
                "observation {} of {node} is missing: send from there",
                observed + 1
            )));
        }
        let end = first.checked_add(observations.len() as u64).ok_or_else(|| invalid("numbers run out"))?;
        for (number, observation) in (first..end).zip(observations) {
            if number > observed {
                self.observe_one(cx, node, registration, observation);
            }
        }
        let newest = observed.max(end.saturating_sub(1));
        self.node_mut(node)?.observed = newest;
        Ok(Response::Observed(newest))
    }

    /// An observation about something that is not this registration's to report is stale: counted, without effect.
    fn observe_one(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        registration: RegistrationId,
        observation: &Observation,
    ) {
        let (attempt, rank) = match observation {
            Observation::BundleHeld { digest } => return self.bundle_held(node, digest),
            Observation::ShardHeld { attempt, seq, rank, root } => {
                return self.shard_held(cx, node, ShardRef { attempt, seq: *seq, rank: *rank }, root);
            }
            Observation::ShardLost { attempt, seq, rank, root, reason } => {
                let of = ShardRef { attempt, seq: *seq, rank: *rank };
                return self.shard_lost(cx, node, of, root, reason);
            }
            Observation::CopyFailed { attempt, seq, rank, reason } => {
                return self.copy_failed(cx, node, ShardRef { attempt, seq: *seq, rank: *rank }, reason);
            }
            Observation::Rendezvous { attempt, .. } => (attempt, 0),
            Observation::Started { attempt, rank }
            | Observation::Ready { attempt, rank }
            | Observation::Restored { attempt, rank, .. }
            | Observation::RestoreFailed { attempt, rank, .. }
            | Observation::StartFailed { attempt, rank, .. }
            | Observation::Exited { attempt, rank, .. }
            | Observation::Released { attempt, rank } => (attempt, *rank),
        };
        let answers = |assignment: &Assignment| {
            assignment.node == *node && assignment.registration == registration && assignment.is_held()
        };
        if !self.attempt(attempt).and_then(|attempt| attempt.assignment(rank)).is_some_and(answers) {
            return;
        }
        match observation {
            Observation::BundleHeld { .. }
            | Observation::ShardHeld { .. }
            | Observation::ShardLost { .. }
            | Observation::CopyFailed { .. } => {}
            Observation::Rendezvous { address, .. } => self.rendezvous(cx, attempt, address),
            Observation::Started { .. } => self.mark_started(cx, attempt, rank),
            Observation::Ready { .. } => self.mark_ready(cx, attempt, rank),
            Observation::Restored { seq, .. } => self.restored(cx, attempt, rank, *seq),
            Observation::RestoreFailed { seq, corrupt, reason, .. } => {
                self.restore_failed(cx, attempt, (rank, node), *seq, *corrupt, reason);
            }
            Observation::StartFailed { reason, .. } => {
                let reason = bounded(reason, REASON_BYTES_MAX);
                self.begin_stop(cx, attempt, Cause::StartFailed { rank, node: node.clone(), reason }, false);
            }
            Observation::Exited { exit, .. } => self.exited(cx, node, attempt, rank, exit),
            Observation::Released { .. } => self.released(cx, node, attempt, rank),
        }
    }

    fn bundle_held(&mut self, node: &NodeId, digest: &Digest) {
        for id in &self.index.active {
            let bundle = self.jobs.get_mut(id).and_then(|job| job.bundle.as_mut());
            if let Some(bundle) =
                bundle.filter(|bundle| bundle.digest == *digest && !bundle.holders.contains(node))
            {
                bundle.holders.push(node.clone());
            }
        }
    }

    fn rendezvous(&mut self, cx: &mut Context<'_>, id: &AttemptId, address: &str) {
        let Some(attempt) = self.attempt_mut(id) else { return };
        let wanted = matches!(attempt.phase, AttemptPhase::Starting | AttemptPhase::Running);
        if !wanted || attempt.rendezvous.is_some() || address.len() > ADDRESS_BYTES_MAX {
            return;
        }
        attempt.rendezvous = Some(address.to_owned());
        self.touch_nodes_of(cx.index, id);
        cx.tell(Event::RendezvousReady { attempt: *id, address: address.to_owned() });
    }

    fn seat_mut(&mut self, id: &AttemptId, rank: u32) -> Option<&mut Assignment> {
        self.attempt_mut(id)?.assignments.get_mut(rank as usize)
    }

    pub(super) fn mark_started(&mut self, cx: &mut Context<'_>, id: &AttemptId, rank: u32) {
        let Some(seat) = self.seat_mut(id, rank).filter(|seat| seat.phase == AssignmentPhase::Assigned)
        else {
            return;
        };
        seat.phase = AssignmentPhase::Started;
        seat.started_at = Some(cx.at);
        let node = seat.node.clone();
        cx.tell(Event::WorkerStarted { attempt: *id, rank, node });
        let spec = self.jobs.get(&id.group.job).map(|job| &job.spec);
        // A service without a check is ready as soon as it runs.
        if spec.is_some_and(|spec| spec.kind == JobKind::Service && spec.ready.is_none()) {
            self.mark_ready(cx, id, rank);
        }
        self.mark_running(cx, id);
    }

    fn mark_running(&mut self, cx: &mut Context<'_>, id: &AttemptId) {
        let Some(attempt) = self.attempt_mut(id).filter(|attempt| attempt.phase == AttemptPhase::Starting)
        else {
            return;
        };
        if !attempt.assignments.iter().all(|seat| seat.started_at.is_some()) {
            return;
        }
        attempt.phase = AttemptPhase::Running;
        attempt.running_at = Some(cx.at);
        cx.tell(Event::AttemptRunning { attempt: *id });
        let Some(job) = self.jobs.get_mut(&id.group.job).filter(|job| job.state == JobState::Pending) else {
            return;
        };
        job.state = JobState::Running;
        cx.tell(Event::JobChanged { job: job.id, state: JobState::Running, reason: None });
    }

    fn mark_ready(&mut self, cx: &mut Context<'_>, id: &AttemptId, rank: u32) {
        let Some(seat) = self.seat_mut(id, rank).filter(|seat| seat.phase == AssignmentPhase::Started) else {
            return;
        };
        seat.phase = AssignmentPhase::Ready;
        cx.tell(Event::WorkerReady { attempt: *id, rank });
    }

    /// A checkpoint that every rank has read back is proven.
    fn restored(&mut self, cx: &mut Context<'_>, id: &AttemptId, rank: u32, seq: CheckpointSeq) {
        let Some(attempt) = self.attempt_mut(id).filter(|attempt| attempt.restore.from == Some(seq)) else {
            return;
        };
        let Some(seat) = attempt.assignments.get_mut(rank as usize).filter(|seat| !seat.restored) else {
            return;
        };
        seat.restored = true;
        let all = attempt.assignments.iter().all(|seat| seat.restored);
        cx.tell(Event::WorkerRestored { attempt: *id, rank, seq });
        if all {
            self.mark_proven(cx, id.group.job, seq);
        }
    }

    fn restore_failed(
        &mut self,
        cx: &mut Context<'_>,
        id: &AttemptId,
        (rank, node): (u32, &NodeId),
        seq: CheckpointSeq,
        corrupt: bool,
        reason: &str,
    ) {
        let reason = bounded(reason, REASON_BYTES_MAX);
        // Only the attempt that may act for its group can say that a checkpoint is bad (invariant 24).
        let restores_it =
            self.attempt(id).is_some_and(|attempt| attempt.is_current() && attempt.restore.from == Some(seq));
        // The agent can ask live holders only: one that is away may still have good bytes.
        if corrupt && restores_it && self.all_holders_live(id.group.job, seq, rank) {
            let evidence = format!("rank {rank} of {id} found no good bytes at any holder: {reason}");
            self.quarantine_if_sealed(cx, id.group.job, seq, &evidence);
        }
        self.begin_stop(cx, id, Cause::RestoreFailed { rank, node: node.clone(), reason }, false);
    }

    fn all_holders_live(&self, job: JobId, seq: CheckpointSeq, rank: u32) -> bool {
        let checkpoint = self.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq));
        let shard =
            checkpoint.and_then(|checkpoint| checkpoint.shards.iter().find(|shard| shard.rank == rank));
        shard.is_none_or(|shard| shard.holders.iter().all(|holder| self.is_live_holder(holder)))
    }

    pub(super) fn exited(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        id: &AttemptId,
        rank: u32,
        exit: &ExitRecord,
    ) {
        let service = self.jobs.get(&id.group.job).is_some_and(|job| job.spec.kind == JobKind::Service);
        let Some(seat) = self.seat_mut(id, rank).filter(|seat| seat.exit.is_none()) else { return };
        seat.phase = AssignmentPhase::Exited;
        let mut record = exit.clone();
        record.bound();
        seat.exit = Some(record);
        // A worker that ended has started, whether or not the agent came to say so.
        seat.started_at = seat.started_at.or(Some(cx.at));
        let status = exit.status;
        cx.tell(Event::WorkerExited { attempt: *id, rank, node: node.clone(), status });
        let running =
            |attempt: &Attempt| matches!(attempt.phase, AttemptPhase::Starting | AttemptPhase::Running);
        if !self.attempt(id).is_some_and(running) {
            return;
        }
        if status.is_success() && !service {
            self.mark_running(cx, id);
            self.finish_if_complete(cx, id);
        } else {
            self.begin_stop(cx, id, Cause::WorkerExited { rank, node: node.clone(), status }, false);
        }
    }

    /// All ranks exited with 0: the group is done, at once or after its last checkpoint had its chance to be sealed.
    fn finish_if_complete(&mut self, cx: &mut Context<'_>, id: &AttemptId) {
        let succeeded = |seat: &Assignment| seat.exit.as_ref().is_some_and(|exit| exit.status.is_success());
        let Some(attempt) = self.attempt_mut(id) else { return };
        if !attempt.assignments.iter().all(succeeded) {
            return;
        }
        let is_open = self.jobs.get(&id.group.job).is_some_and(|job| {
            job.checkpoints.values().any(|open| open.state == CheckpointState::Open && open.attempt == *id)
        });
        if is_open {
            self.begin_stop(cx, id, Cause::Completed, true);
        } else {
            if let Some(attempt) = self.attempt_mut(id) {
                attempt.cause = Some(Cause::Completed);
            }
            self.end_now(cx, id, Outcome::Succeeded);
        }
    }

    fn released(&mut self, cx: &mut Context<'_>, node: &NodeId, id: &AttemptId, rank: u32) {
        let ended = self
            .attempt(id)
            .and_then(|attempt| attempt.assignment(rank))
            .is_some_and(|seat| seat.exit.is_some());
        self.release(cx, id, rank);
        self.touch_node(cx.index, node);
        // Gone without a word of how it ended: nothing of the attempt is left there. A rank of an attempt that is being
        // stopped, or that never started, has nothing to tell.
        let runs = self.attempt(id).is_some_and(|attempt| attempt.phase != AttemptPhase::Stopping);
        if !ended && runs {
            self.begin_stop(cx, id, Cause::NodeRestarted { node: node.clone() }, false);
        }
    }

    pub(super) fn release(&mut self, cx: &mut Context<'_>, id: &AttemptId, rank: u32) {
        self.let_go(id, rank, AssignmentPhase::Released);
        self.refile(id.group.job);
        cx.tell(Event::WorkerReleased { attempt: *id, rank });
    }
}
