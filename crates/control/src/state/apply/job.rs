//! Jobs come, are cancelled, and leave after their retention.

use std::collections::{BTreeMap, VecDeque};

use outlast_types::spec::{SPEC_SIZE_MAX, WORKERS_MAX};
use outlast_types::{GroupId, JobId, JobSpec};

use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, exhausted, invalid, not_found};
use crate::state::{
    Bundle, CheckpointState, ClusterState, Event, FailureBudget, Group, GroupTotals, Incarnation, Job,
    JobState, Limits, Refusal, Response,
};

impl ClusterState {
    pub(super) fn submit_job(
        &mut self,
        cx: &mut Context<'_>,
        spec: &JobSpec,
        bundle: Option<&Bundle>,
    ) -> Handled {
        check_spec(spec)?;
        let request = cx
            .request
            .ok_or_else(|| invalid("a submission needs a request id, so that a retry is one job"))?;
        if let Some(other) = self.index.names.get(&spec.name) {
            return Err(conflict(format!(
                "job {other} is called {:?} and is not finished: cancel it, or choose another name",
                spec.name
            )));
        }
        if self.jobs.len() >= Limits::JOBS_MAX {
            return Err(exhausted(format!(
                "the cluster holds {} jobs, which is its bound: finished ones leave after their retention time",
                Limits::JOBS_MAX
            )));
        }
        let id = JobId(self.next_job);
        let (groups, _) = spec.shape();
        let job = Job {
            id,
            spec: spec.clone(),
            request: request.clone(),
            actor: cx.actor.clone(),
            submitted_at: cx.at,
            finished_at: None,
            state: JobState::Pending,
            failing: false,
            reason: None,
            bundle: bundle.cloned(),
            groups: (0..groups).map(|index| new_group(GroupId { job: id, index })).collect(),
            checkpoints: BTreeMap::new(),
            next_checkpoint: 1,
        };
        self.next_job += 1;
        self.index.file(&job);
        self.jobs.insert(id, job);
        cx.tell(Event::JobSubmitted { job: id });
        Ok(Response::JobSubmitted(id))
    }

    pub(super) fn cancel_job(&mut self, cx: &mut Context<'_>, id: JobId, reason: Option<&str>) -> Handled {
        let who = cx.actor.to_string();
        let job = self.job_mut(id)?;
        match job.state {
            JobState::Cancelling | JobState::Cancelled => return Ok(Response::Done),
            JobState::Succeeded | JobState::Failed => {
                return Err(conflict(format!("job {id} has {} already", job.state.as_str())));
            }
            JobState::Pending | JobState::Running => {}
        }
        let reason =
            reason.map_or_else(|| format!("cancelled by {who}"), |text| bounded(text, REASON_BYTES_MAX));
        job.state = JobState::Cancelling;
        job.reason = Some(reason.clone());
        cx.tell(Event::JobChanged { job: id, state: JobState::Cancelling, reason: Some(reason) });
        self.stop_all(cx, id);
        self.settle(cx, id);
        Ok(Response::Done)
    }

    /// The record leaves, and its last checkpoints are retired with it.
    pub(super) fn expire_job(
        &mut self,
        cx: &mut Context<'_>,
        id: JobId,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let job = self.jobs.get(&id).ok_or_else(|| not_found(format!("job {id}")))?;
        let Some(finished_at) = job.finished_at.filter(|_| job.state.is_final()) else {
            return Err(conflict(format!("job {id} is not finished")));
        };
        if cx.at.since(finished_at) < job.spec.retention.millis() {
            return Err(conflict(format!(
                "the retention time of job {id} ({}) is not over",
                job.spec.retention
            )));
        }
        if self.held_by_job(id) > 0 {
            return Err(conflict(format!("job {id} still holds resources")));
        }
        if job.checkpoints.values().any(|checkpoint| checkpoint.pinned && checkpoint.is_sealed()) {
            return Err(conflict(format!("job {id} has a pinned checkpoint: unpin it first")));
        }
        let bytes = |state| matches!(state, CheckpointState::Sealed | CheckpointState::Quarantined);
        for checkpoint in job.checkpoints.values().filter(|checkpoint| bytes(checkpoint.state)) {
            cx.tell(Event::CheckpointRetired { job: id, seq: checkpoint.seq });
        }
        for seq in job.checkpoints.keys().copied().collect::<Vec<_>>() {
            self.drop_orders(id, seq, |_, _| true);
        }
        if let Some(job) = self.jobs.remove(&id) {
            self.index.forget(&job);
        }
        cx.tell(Event::JobExpired { job: id });
        Ok(Response::Done)
    }
}

/// What the parser promised; a log may hold anything.
pub(in crate::state) fn check_spec(spec: &JobSpec) -> Result<(), Refusal> {
    if spec.name.is_empty() || spec.name.len() > 63 {
        return Err(invalid("a job's name has 1 to 63 characters"));
    }
    if spec.command.is_empty() {
        return Err(invalid("a job needs a command"));
    }
    if !(1..=WORKERS_MAX).contains(&spec.workers.max) || spec.workers.min > spec.workers.max {
        return Err(invalid(format!("a job has 1 to {WORKERS_MAX} workers")));
    }
    let words: usize = spec.command.iter().map(String::len).sum();
    let env: usize = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if words + env > SPEC_SIZE_MAX {
        return Err(invalid(format!("command and environment together have at most {SPEC_SIZE_MAX} bytes")));
    }
    Ok(())
}

pub(in crate::state) fn new_group(id: GroupId) -> Group {
    Group {
        id,
        attempts: VecDeque::new(),
        totals: GroupTotals::default(),
        next_number: 1,
        user_failures: FailureBudget::default(),
        infrastructure_failures: FailureBudget::default(),
        not_before: None,
        interval: None,
        done: false,
    }
}
