//! `StartAttempt`: a compare-and-set on the group's newest attempt, all ranks or none, and the restore decision.
//! It ends a Stopping predecessor in the same entry, so a seal is either before it or fenced (invariants 22, 24).

use std::collections::BTreeMap;

use outlast_types::{AttemptId, Cause, GroupId, NodeId, NodeResources};

use super::attempt_end::outcome_of;
use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, invalid, not_found};
use crate::planted::planted;
use crate::state::{
    Assignment, AssignmentPhase, Attempt, AttemptPhase, ClusterState, Event, Group, Incarnation, Job, Limits,
    Placed, Refusal, Response, RestoreDecision, Rung,
};

pub(super) struct Start<'a> {
    pub(super) group: GroupId,
    pub(super) previous: u64,
    pub(super) rung: Rung,
    pub(super) placed: &'a [Placed],
    pub(super) restore: &'a RestoreDecision,
}

/// Newer checkpoints that one decision may pass over: it is a record for people.
const PASSED_OVER_MAX: usize = 64;

impl ClusterState {
    pub(super) fn start_attempt(
        &mut self,
        cx: &mut Context<'_>,
        start: &Start<'_>,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let job =
            self.jobs.get(&start.group.job).ok_or_else(|| not_found(format!("job {}", start.group.job)))?;
        let group =
            job.group(start.group.index).ok_or_else(|| not_found(format!("group {}", start.group)))?;
        check_group(job, group, start)?;
        self.check_places(job, start.placed)?;
        self.check_exclusive(job, group, start.placed)?;
        self.check_restore(job, group, start.restore)?;

        let attempt = self.new_attempt(cx, job, group, start);
        let id = attempt.id;
        if let Some(previous) = group.current().map(|previous| (previous.id, outcome_of(previous))) {
            self.end_now(cx, &previous.0, previous.1);
        }
        self.abort_open(cx, id.group.job, "a newer attempt started", |open| open.group == id.group);
        for assignment in &attempt.assignments {
            self.index.hold(&assignment.node, id, assignment.rank);
        }
        cx.tell(Event::AttemptStarted { attempt: id, rung: start.rung, restore_from: start.restore.from });
        if let Some(group) = self.group_mut(&id.group) {
            group.next_number = id.number + u64::from(!planted!(ReuseAttemptNumber) || id.number == 1);
            group.attempts.push_back(attempt);
            for gone in trim(group) {
                self.index.forget_failure(&gone);
            }
        }
        self.touch_nodes_of(cx.index, &id);
        Ok(Response::AttemptStarted(id))
    }

    fn new_attempt(&self, cx: &Context<'_>, job: &Job, group: &Group, start: &Start<'_>) -> Attempt {
        let assignment = |placed: &Placed| Assignment {
            rank: placed.rank,
            node: placed.node.clone(),
            registration: placed.registration,
            resources: job.spec.resources.clone(),
            gpus: placed.gpus.clone(),
            phase: AssignmentPhase::Assigned,
            started_at: None,
            exit: None,
            restored: false,
        };
        let bound = |(seq, reason): &(_, String)| (*seq, bounded(reason, REASON_BYTES_MAX));
        Attempt {
            id: AttemptId { group: group.id, generation: self.generation, number: group.next_number },
            phase: AttemptPhase::Starting,
            rung: start.rung,
            assignments: start.placed.iter().map(assignment).collect(),
            rendezvous: None,
            restore: RestoreDecision {
                from: start.restore.from,
                passed_over: start.restore.passed_over.iter().map(bound).collect(),
            },
            created_at: cx.at,
            running_at: None,
            stopping_at: None,
            ended_at: None,
            cause: None,
            later_causes: Vec::new(),
            outcome: None,
            graceful_stop: false,
            checkpoint_requested: false,
            checkpoint_requested_from: None,
            skipped_step: None,
        }
    }

    /// Invariants 9 and 20: what is held on a node never exceeds it, earlier ranks of this command counted.
    fn check_places(&self, job: &Job, placed: &[Placed]) -> Result<(), Refusal> {
        let mut free: BTreeMap<&NodeId, NodeResources> = BTreeMap::new();
        for place in placed {
            let node =
                self.nodes.get(&place.node).ok_or_else(|| not_found(format!("node {}", place.node)))?;
            if !node.accepts_work() {
                return Err(conflict(format!("node {} takes no new work", node.id)));
            }
            if node.registration != place.registration {
                return Err(conflict(format!("node {} has registered anew since it was chosen", node.id)));
            }
            let free = free.entry(&place.node).or_insert_with(|| self.free_resources(&place.node));
            take(free, job, place).map_err(|what| {
                conflict(format!("node {} has not enough free {what} for rank {}", place.node, place.rank))
            })?;
        }
        Ok(())
    }

    /// Invariant 23: an exclusive group starts only when nothing of it is held anywhere, on nodes that can fence.
    fn check_exclusive(&self, job: &Job, group: &Group, placed: &[Placed]) -> Result<(), Refusal> {
        if !job.spec.exclusive || planted!(ShareExclusive) {
            return Ok(());
        }
        let held = group.attempts.iter().flat_map(|attempt| &attempt.assignments).find(|a| a.is_held());
        if let Some(held) = held {
            return Err(conflict(format!("exclusive: rank {} is still held on {}", held.rank, held.node)));
        }
        let fences =
            |place: &&Placed| self.nodes.get(&place.node).is_some_and(|node| node.features.cgroup_fence);
        match placed.iter().find(|place| !fences(place)) {
            Some(place) => Err(conflict(format!("exclusive: node {} cannot fence by cgroup", place.node))),
            None => Ok(()),
        }
    }

    /// Invariant 35: the newest sealed checkpoint that was not passed over with a reason; never the beginning while
    /// any sealed one exists.
    fn check_restore(&self, job: &Job, group: &Group, restore: &RestoreDecision) -> Result<(), Refusal> {
        if restore.passed_over.len() > PASSED_OVER_MAX {
            return Err(invalid(format!("at most {PASSED_OVER_MAX} checkpoints can be passed over")));
        }
        if planted!(UnreadIsNone) {
            return Ok(());
        }
        let sealed = job.sealed_of(group.id.index);
        let passed = |seq| restore.passed_over.iter().any(|(passed, _)| *passed == seq);
        let expected = sealed.iter().map(|checkpoint| checkpoint.seq).find(|seq| !passed(*seq));
        match (expected, restore.from) {
            (expected, from) if expected != from => Err(conflict(match expected {
                Some(seq) => format!("{seq} is the newest sealed checkpoint that was not passed over"),
                None => "the checkpoint to restore from is not sealed".to_owned(),
            })),
            (None, None) if !sealed.is_empty() => {
                Err(conflict("sealed checkpoints exist: quarantine them to start from the beginning"))
            }
            _ => Ok(()),
        }
    }
}

fn check_group(job: &Job, group: &Group, start: &Start<'_>) -> Result<(), Refusal> {
    if job.is_ending() && !planted!(StartCancelled) || group.done {
        return Err(conflict(format!("group {} is over", group.id)));
    }
    let newest = group.next_number.saturating_sub(1);
    if start.previous != newest {
        return Err(conflict(format!(
            "the newest attempt of {} is number {newest}, not {}",
            group.id, start.previous
        )));
    }
    match group.current() {
        Some(current) if current.phase != AttemptPhase::Stopping => {
            return Err(conflict(format!("{} is not being stopped", current.id)));
        }
        Some(current) if current.cause == Some(Cause::Completed) => {
            return Err(conflict(format!("{} has completed", current.id)));
        }
        _ => {}
    }
    let (_, world) = job.spec.shape();
    let world = world - u32::from(planted!(LoseLastRank) && world > 1);
    let whole = start.placed.len() == world as usize
        && start.placed.iter().zip(0..).all(|(place, rank): (&Placed, u32)| place.rank == rank);
    if whole {
        Ok(())
    } else {
        Err(invalid(format!("a gang is placed whole: ranks 0 to {}", world.saturating_sub(1))))
    }
}

/// Takes a rank's resources out of what is free, or names what is short.
fn take(free: &mut NodeResources, job: &Job, place: &Placed) -> Result<(), String> {
    let wanted = &job.spec.resources;
    free.cpu_millis = free.cpu_millis.checked_sub(wanted.cpu_millis).ok_or("cpus")?;
    free.memory.0 = free.memory.0.checked_sub(wanted.memory.0).ok_or("memory")?;
    if place.gpus.len() != wanted.gpus as usize {
        return Err(format!("gpus ({} named, {} wanted)", place.gpus.len(), wanted.gpus));
    }
    for gpu in &place.gpus {
        let position = free.gpus.iter().position(|free| free.index == *gpu).ok_or("gpus")?;
        free.gpus.remove(position);
    }
    for (name, count) in &wanted.custom {
        let left = free.custom.get_mut(name).ok_or_else(|| name.clone())?;
        *left = left.checked_sub(*count).ok_or_else(|| name.clone())?;
    }
    Ok(())
}

/// Keeps the history bounded; what leaves it is counted, and given back. An attempt that still holds something stays.
fn trim(group: &mut Group) -> Vec<Attempt> {
    let mut left = Vec::new();
    while group.attempts.len() > Limits::ATTEMPTS_KEPT {
        let older = group.attempts.len() - 1;
        let is_free = |attempt: &Attempt| !attempt.assignments.iter().any(Assignment::is_held);
        let Some(position) = group.attempts.iter().take(older).position(is_free) else { break };
        let Some(gone) = group.attempts.remove(position) else { break };
        group.totals.attempts += 1;
        let code = gone.cause.as_ref().map_or("none", Cause::code);
        *group.totals.ended.entry(code.to_owned()).or_default() += 1;
        left.push(gone);
    }
    let wordy = group.attempts.len().saturating_sub(Limits::LAST_LINES_KEPT);
    for assignment in group.attempts.iter_mut().take(wordy).flat_map(|attempt| &mut attempt.assignments) {
        if let Some(exit) = &mut assignment.exit {
            exit.last_lines = Vec::new();
        }
    }
    left
}
