//! How attempts end, and what follows: budgets, back-off, the job's own end. The one place that charges a failure.

use outlast_types::{AttemptId, Cause, CauseClass, GroupId, JobId, JobKind, NodeId, WallTime};

use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, fenced, not_found};
use crate::planted::planted;
use crate::state::{
    Attempt, AttemptPhase, CheckpointState, ClusterState, Event, Group, Incarnation, Job, JobState, Outcome,
    Refusal, Response,
};

/// Causes that are kept beside the first one.
const LATER_CAUSES_MAX: usize = 8;
/// Infrastructure failures in a row that are retried at once: machines fail in bursts, and waiting cures nothing.
const UNDELAYED_INFRASTRUCTURE_FAILURES: u32 = 3;
const BACKOFF_FIRST_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 60_000;
/// A service has no checkpoints that would show progress: having run this long counts as such, or any service would
/// be given up after its fourth crash in a year.
const SERVICE_STABLE_MS: u64 = 10 * 60_000;

impl ClusterState {
    pub(super) fn job_mut(&mut self, job: JobId) -> Result<&mut Job, Refusal> {
        self.jobs.get_mut(&job).ok_or_else(|| not_found(format!("job {job}")))
    }

    pub(super) fn group_mut(&mut self, group: &GroupId) -> Option<&mut Group> {
        self.jobs.get_mut(&group.job)?.groups.get_mut(group.index as usize)
    }

    pub(super) fn attempt_mut(&mut self, id: &AttemptId) -> Option<&mut Attempt> {
        let group = self.group_mut(&id.group)?;
        let position = group.position(id)?;
        group.attempts.get_mut(position)
    }

    /// The attempt, if it is its group's current one; fenced otherwise (invariant 24).
    pub(super) fn current_attempt(&self, id: &AttemptId) -> Result<&Attempt, Refusal> {
        let group = self.group(&id.group).ok_or_else(|| not_found(format!("group {}", id.group)))?;
        match group.current() {
            Some(attempt) if attempt.id == *id => Ok(attempt),
            Some(other) => Err(fenced(format!("{id} is not the current attempt, {} is", other.id))),
            None => Err(fenced(format!("{id} is not the current attempt: it has ended"))),
        }
    }

    /// Marks what the nodes of an attempt have to do as changed, so that no agent acts on an older view.
    pub(super) fn touch_nodes_of(&mut self, index: u64, id: &AttemptId) {
        let held = |attempt: &Attempt| -> Vec<NodeId> {
            attempt.assignments.iter().filter(|a| a.is_held()).map(|a| a.node.clone()).collect()
        };
        for node in self.attempt(id).map(held).unwrap_or_default() {
            self.touch_node(index, &node);
        }
    }

    pub(super) fn touch_node(&mut self, index: u64, node: &NodeId) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.assignments_changed_at = node.assignments_changed_at.max(index);
        }
    }

    /// Starting or Running → Stopping, charged to the cause's budget once; a further cause of a Stopping one is kept
    /// beside the first.
    pub(super) fn begin_stop(&mut self, cx: &mut Context<'_>, id: &AttemptId, cause: Cause, graceful: bool) {
        let Some(attempt) = self.attempt_mut(id) else { return };
        match attempt.phase {
            AttemptPhase::Ended => return,
            AttemptPhase::Stopping => {
                let known = attempt.cause.as_ref() == Some(&cause) || attempt.later_causes.contains(&cause);
                if !known && attempt.later_causes.len() < LATER_CAUSES_MAX {
                    attempt.later_causes.push(cause);
                }
                return;
            }
            AttemptPhase::Starting | AttemptPhase::Running => {}
        }
        attempt.phase = AttemptPhase::Stopping;
        attempt.stopping_at = Some(cx.at);
        #[cfg(feature = "planted")]
        if planted!(ApplyAsksClock) {
            attempt.stopping_at = Some(WallTime(crate::planted::clock()));
        }
        attempt.graceful_stop = graceful;
        attempt.cause = Some(cause.clone());
        let ran_ms = attempt.running_at.map_or(0, |since| cx.at.since(since));
        if let Some(attempt) = self.jobs.get(&id.group.job).and_then(|job| job.attempt(id)) {
            self.index.note_failure(attempt);
        }
        self.charge(cx.at, &id.group, cause.class(), ran_ms);
        self.touch_nodes_of(cx.index, id);
        cx.tell(Event::AttemptStopping { attempt: *id, cause });
    }

    /// A machine that went away under a running rank. Where the other ranks noticed first (their connection broke) and
    /// ended by themselves, the machine was the cause all the same: it becomes the first one, and the failure is taken
    /// from the program's budget.
    pub(super) fn begin_stop_by_machine(&mut self, cx: &mut Context<'_>, id: &AttemptId, cause: Cause) {
        let is_echo = |attempt: &&mut Attempt| {
            let blamed = attempt.cause.as_ref().map(Cause::class);
            attempt.phase == AttemptPhase::Stopping && blamed == Some(CauseClass::User)
        };
        let Some(attempt) = self.attempt_mut(id).filter(is_echo) else {
            return self.begin_stop(cx, id, cause, false);
        };
        let echo = attempt.cause.replace(cause.clone());
        attempt.later_causes.splice(0..0, echo);
        attempt.later_causes.truncate(LATER_CAUSES_MAX);
        let ran_ms = attempt.running_at.map_or(0, |since| cx.at.since(since));
        if let Some(group) = self.group_mut(&id.group) {
            group.user_failures.since_progress = group.user_failures.since_progress.saturating_sub(1);
            group.user_failures.total = group.user_failures.total.saturating_sub(1);
            group.not_before = None;
        }
        self.charge(cx.at, &id.group, cause.class(), ran_ms);
        cx.tell(Event::AttemptStopping { attempt: *id, cause });
    }

    fn charge(&mut self, at: WallTime, group: &GroupId, class: CauseClass, ran_ms: u64) {
        let Some(job) = self.jobs.get_mut(&group.job) else { return };
        let stable = job.spec.kind == JobKind::Service && ran_ms >= SERVICE_STABLE_MS;
        let Some(group) = job.groups.get_mut(group.index as usize) else { return };
        if stable {
            reset_budgets(group);
        }
        let (budget, undelayed) = match class {
            CauseClass::Wanted => return,
            CauseClass::User => (&mut group.user_failures, 1),
            CauseClass::Infrastructure => {
                (&mut group.infrastructure_failures, UNDELAYED_INFRASTRUCTURE_FAILURES)
            }
        };
        budget.since_progress = budget.since_progress.saturating_add(1);
        budget.total = budget.total.saturating_add(1);
        let wait_ms = backoff_ms(budget.since_progress, undelayed);
        if wait_ms > 0 {
            group.not_before = group.not_before.max(Some(at.plus(wait_ms)));
        }
    }

    /// Ends a current attempt for good: nothing of it can be sealed from here on.
    pub(super) fn end_now(&mut self, cx: &mut Context<'_>, id: &AttemptId, outcome: Outcome) {
        let Some(attempt) = self.attempt_mut(id).filter(|attempt| attempt.is_current()) else { return };
        attempt.phase = AttemptPhase::Ended;
        attempt.ended_at = Some(cx.at);
        attempt.outcome = Some(outcome.clone());
        if outcome == Outcome::Succeeded
            && let Some(group) = self.group_mut(&id.group)
        {
            group.done = true;
        }
        cx.tell(Event::AttemptEnded { attempt: *id, outcome });
        self.abort_open(cx, id.group.job, "its attempt ended before it was sealed", |open| open == *id);
        self.touch_nodes_of(cx.index, id);
        self.settle(cx, id.group.job);
    }

    /// Aborts the open checkpoints of the job whose attempt the predicate names.
    pub(super) fn abort_open(
        &mut self,
        cx: &mut Context<'_>,
        job: JobId,
        reason: &str,
        of: impl Fn(AttemptId) -> bool,
    ) {
        if planted!(SealWithoutAttempt) {
            return;
        }
        let Some(record) = self.jobs.get_mut(&job) else { return };
        let open =
            record.checkpoints.values_mut().filter(|checkpoint| checkpoint.state == CheckpointState::Open);
        for checkpoint in open.filter(|checkpoint| of(checkpoint.attempt)) {
            checkpoint.state = CheckpointState::Aborted;
            checkpoint.reason = Some(reason.to_owned());
            cx.tell(Event::CheckpointAborted { job, seq: checkpoint.seq, reason: reason.to_owned() });
        }
        self.trim_checkpoints(cx, job);
    }

    /// The job's own end, when none of its attempts is current any more and none will follow.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state.is_final() || job.groups.iter().any(|group| group.current().is_some()) {
            return;
        }
        let state = match job.state {
            JobState::Cancelling => JobState::Cancelled,
            _ if job.failing => JobState::Failed,
            _ if job.groups.iter().all(|group| group.done) => JobState::Succeeded,
            _ => return,
        };
        job.state = state;
        job.finished_at = Some(cx.at);
        cx.tell(Event::JobChanged { job: id, state, reason: job.reason.clone() });
        self.index.file(job);
    }

    pub(super) fn stop_attempt(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        cause: &Cause,
        graceful: bool,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        if self.current_attempt(&id)?.phase != AttemptPhase::Stopping {
            self.begin_stop(cx, &id, cause.clone(), graceful);
        }
        Ok(Response::Done)
    }

    pub(super) fn end_attempt(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let attempt = self.attempt(&id).ok_or_else(|| not_found(format!("attempt {id}")))?;
        match attempt.phase {
            AttemptPhase::Ended => Ok(Response::Done),
            AttemptPhase::Stopping => {
                let outcome = outcome_of(attempt);
                self.end_now(cx, &id, outcome);
                Ok(Response::Done)
            }
            AttemptPhase::Starting | AttemptPhase::Running => {
                Err(conflict(format!("{id} is not being stopped: stop it first")))
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        cx: &mut Context<'_>,
        id: GroupId,
        reason: &str,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let group = self.group(&id).ok_or_else(|| not_found(format!("group {id}")))?;
        if self.jobs.get(&id.job).is_some_and(Job::is_ending) || group.done {
            return Err(conflict(format!("group {id} is over already")));
        }
        let current = group.current().map(|attempt| (attempt.id, attempt.phase, attempt.cause.clone()));
        match current {
            Some((attempt, AttemptPhase::Starting | AttemptPhase::Running, _)) => {
                return Err(conflict(format!("{attempt} still runs: stop it first")));
            }
            Some((attempt, _, Some(Cause::Completed))) => {
                return Err(conflict(format!("{attempt} has completed")));
            }
            _ => {}
        }
        let job = self.job_mut(id.job)?;
        job.failing = true;
        job.reason = Some(bounded(reason, REASON_BYTES_MAX));
        if let Some(group) = self.group_mut(&id) {
            group.done = true;
        }
        if let Some((attempt, _, _)) = current {
            self.end_now(cx, &attempt, Outcome::Failed);
        }
        self.stop_all(cx, id.job);
        self.settle(cx, id.job);
        Ok(Response::Done)
    }

    /// Asks every attempt of a job that is on its way out to stop.
    pub(super) fn stop_all(&mut self, cx: &mut Context<'_>, job: JobId) {
        let Some(record) = self.jobs.get(&job) else { return };
        let current: Vec<AttemptId> =
            record.groups.iter().filter_map(Group::current).map(|attempt| attempt.id).collect();
        for attempt in current {
            self.begin_stop(cx, &attempt, Cause::Cancelled, true);
        }
    }
}

/// A checkpoint was sealed, or a service ran long: what failed before is forgiven.
pub(super) fn reset_budgets(group: &mut Group) {
    group.user_failures.since_progress = 0;
    group.infrastructure_failures.since_progress = 0;
    group.not_before = None;
}

/// What a Stopping attempt's end counts as: its first cause decides.
pub(super) fn outcome_of(attempt: &Attempt) -> Outcome {
    match &attempt.cause {
        Some(Cause::Completed) => Outcome::Succeeded,
        Some(Cause::Cancelled) => Outcome::Cancelled,
        Some(cause) if cause.class() == CauseClass::Wanted => Outcome::Moved,
        _ => Outcome::Failed,
    }
}

/// 0 for the first `undelayed` failures, then 1 s, 2 s, 4 s … up to the cap.
fn backoff_ms(failures: u32, undelayed: u32) -> u64 {
    match failures.checked_sub(undelayed + 1) {
        None => 0,
        Some(doublings) => BACKOFF_FIRST_MS.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MAX_MS),
    }
}

#[cfg(test)]
mod tests {
    use super::backoff_ms;

    #[test]
    fn back_off_starts_at_once_doubles_and_is_capped() {
        let user: Vec<u64> = (1..=9).map(|failures| backoff_ms(failures, 1)).collect();
        assert_eq!(user, [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        let infrastructure: Vec<u64> = (1..=5).map(|failures| backoff_ms(failures, 3)).collect();
        assert_eq!(infrastructure, [0, 0, 0, 1_000, 2_000]);
        assert_eq!(backoff_ms(u32::MAX, 1), 60_000);
    }
}
