//! The recovery ladder (design section 5): restart in place, move the failed rank, place anew, give up. One decision a
//! group a pass; whatever cannot be done now is waited for, with the reason.

use std::collections::BTreeMap;

use outlast_types::{AttemptId, Cause, Millis, NodeId, Timers};

use super::placement::Wanted;
use super::restore::{self, Restore};
use super::{AGAIN_MS, Pass, STARTS_MAX, seals};
use crate::planted::planted;
use crate::state::{
    Assignment, AssignmentPhase, Attempt, AttemptPhase, Command, Group, Job, Outcome, Placed, Rung,
};

/// How long a Stopping attempt is kept for what is nearly sealed (`salvage_wait` of the checkpoint protocol).
const SALVAGE_MS: Millis = 1_000;
/// How long its agents are heard out before that: what a dead worker had staged is known a heartbeat after its end.
const NEWS_MS: Millis = 500;
/// How long a Stopping attempt's complete checkpoint has to be sealed.
const SEAL_MS: Millis = 2 * SALVAGE_MS;
/// How long ranks that stay wait for their predecessor's release on a live node before other nodes are chosen: a
/// kill takes milliseconds, a process in an uninterruptible read takes as long as its disk.
const RELEASE_WAIT_MS: Millis = 30_000;
/// Infrastructure failures without progress after which a person has to look: at the back-off's cap this is most of
/// an hour.
const INFRASTRUCTURE_FAILURES_MAX: u32 = 50;

/// A Stopping attempt: salvage first, then its successor, or its end where none may follow.
pub(super) fn stopping(pass: &mut Pass<'_>, job: &Job, group: &Group, attempt: &Attempt) {
    let for_ms = stopping_for(pass, &attempt.id);
    let hears_more = for_ms < NEWS_MS;
    if for_ms < SALVAGE_MS && seals::salvage_is_pending(pass, job, attempt, hears_more) {
        pass.plan.check_in(if hears_more { NEWS_MS } else { SALVAGE_MS } - for_ms);
        return pass.plan.wait(group.id, "what is nearly saved is being sealed first");
    }
    if awaits_its_seal(pass, attempt, for_ms) {
        return pass.plan.wait(group.id, "its last checkpoint is complete and is being sealed");
    }
    if attempt.cause == Some(Cause::Completed) {
        return end(pass, &attempt.id);
    }
    if job.is_ending() && !planted!(StartCancelled) || group.done {
        let patience = job.spec.recovery.stop_grace.millis().saturating_add(RELEASE_WAIT_MS);
        if end_if_idle(pass, attempt, patience) {
            return;
        }
        return pass.plan.wait(group.id, "its workers are being stopped");
    }
    start(pass, job, group);
}

/// A seal of this very pass goes before whatever would fence it. One that does not come to be (the manifest cannot be
/// written) is dropped after as long again: work does not stop for it.
fn awaits_its_seal(pass: &mut Pass<'_>, attempt: &Attempt, for_ms: Millis) -> bool {
    if !pass.plan.seals.iter().any(|seal| seal.attempt == attempt.id) {
        return false;
    }
    if for_ms < SEAL_MS {
        pass.plan.check_in(SEAL_MS - for_ms);
        return true;
    }
    pass.plan.seals.retain(|seal| seal.attempt != attempt.id);
    false
}

fn stopping_for(pass: &Pass<'_>, attempt: &AttemptId) -> Millis {
    pass.seen.stopping_since.get(attempt).map_or(0, |since| pass.now.boot.since(*since))
}

fn end(pass: &mut Pass<'_>, attempt: &AttemptId) {
    pass.plan.push(Command::EndAttempt { attempt: *attempt, incarnation: pass.incarnation }, None);
}

/// Ends a Stopping attempt that holds nothing any more, or that has been waited for long enough.
fn end_if_idle(pass: &mut Pass<'_>, attempt: &Attempt, patience: Millis) -> bool {
    if attempt.phase != AttemptPhase::Stopping {
        return false;
    }
    let for_ms = stopping_for(pass, &attempt.id);
    let idle = !attempt.assignments.iter().any(Assignment::is_held);
    if idle || for_ms >= patience {
        end(pass, &attempt.id);
        return true;
    }
    pass.plan.check_in(patience - for_ms);
    false
}

/// The group's next attempt: its first, or the successor of a Stopping or ended one.
pub(super) fn start(pass: &mut Pass<'_>, job: &Job, group: &Group) {
    if let Some(reason) = give_up_reason(job, group) {
        if let Some(why) = unheard_of(pass, group) {
            return pass.plan.wait(group.id, why);
        }
        if let Some((seq, why)) = restore::poisoned(pass, job, group) {
            let command = Command::QuarantineCheckpoint {
                job: job.id,
                seq,
                reason: why.clone(),
                incarnation: Some(pass.incarnation),
            };
            pass.plan.push(command, Some(why.clone()));
            pass.plan.check_in(AGAIN_MS);
            return pass.plan.wait(group.id, format!("{seq} is being set aside: {why}"));
        }
        let command =
            Command::GiveUp { group: group.id, reason: reason.clone(), incarnation: pass.incarnation };
        pass.given_up = Some(job.id);
        return pass.plan.push(command, Some(reason));
    }
    match try_start(pass, job, group) {
        Ok(command) => {
            let cause = group.newest().and_then(|previous| previous.cause.as_ref()).map(Cause::to_string);
            pass.starts += 1;
            pass.plan.push(command, cause);
        }
        Err(why) => {
            pass.plan.wait(group.id, why);
            if let Some(previous) = group.newest() {
                end_if_idle(pass, previous, RELEASE_WAIT_MS);
            }
        }
    }
}

/// A rank that nothing was heard of since the failure: its node may be the real cause, and a machine's failure must not
/// cost the job its life. Its release or its node's loss decides.
fn unheard_of(pass: &mut Pass<'_>, group: &Group) -> Option<String> {
    let newest = group.newest().filter(|attempt| attempt.phase == AttemptPhase::Stopping)?;
    let left_ms =
        RELEASE_WAIT_MS.checked_sub(stopping_for(pass, &newest.id)).filter(|left_ms| *left_ms > 0)?;
    let seat = newest.assignments.iter().find(|seat| seat.is_held())?;
    pass.plan.check_in(left_ms);
    Some(format!(
        "it failed too often; what became of rank {} on {} is still to be heard",
        seat.rank, seat.node
    ))
}

/// `max_user_failures: 3` means that the fourth failure in a row fails the job.
fn give_up_reason(job: &Job, group: &Group) -> Option<String> {
    let user = group.user_failures.since_progress;
    let infrastructure = group.infrastructure_failures.since_progress;
    let last =
        group.newest().and_then(|attempt| attempt.cause.as_ref()).map_or_else(String::new, Cause::to_string);
    if user > job.spec.recovery.max_user_failures {
        return Some(format!(
            "{user} failures of the program without a new checkpoint in between; the last: {last}"
        ));
    }
    (infrastructure > INFRASTRUCTURE_FAILURES_MAX).then(|| {
        format!(
            "{infrastructure} infrastructure failures without a new checkpoint in between; the last: {last}"
        )
    })
}

fn try_start(pass: &mut Pass<'_>, job: &Job, group: &Group) -> Result<Command, String> {
    if let Some(until) = group.not_before.filter(|until| *until > pass.now.wall) {
        let left_ms = until.since(pass.now.wall);
        pass.plan.check_in(left_ms);
        let failures = group.user_failures.since_progress.max(group.infrastructure_failures.since_progress);
        return Err(format!("it failed {failures} times in a row: the next try is at {until}"));
    }
    if job.spec.exclusive
        && !planted!(ShareExclusive)
        && let Some((attempt, seat)) = held_anywhere(group)
    {
        return Err(format!(
            "exclusive: rank {} of {} is not released on {} yet",
            seat.rank, attempt.id, seat.node
        ));
    }
    if let Some(left_ms) = lost_time_left(pass, job, group) {
        pass.plan.check_in(left_ms);
        return Err("exclusive: leases of the time that was lost have to run out first".to_owned());
    }
    let restore = match restore::decide(pass, job, group) {
        Restore::From(decision) => decision,
        Restore::Wait(why) => return Err(why),
    };
    if pass.starts >= STARTS_MAX {
        pass.plan.check_in(AGAIN_MS);
        return Err("others are being started first".to_owned());
    }
    let (rung, placed) = match group.newest() {
        None => (Rung::First, pass.ledger.place(&anew(job, group, BTreeMap::new()))?),
        Some(previous) => place_again(pass, job, group, previous)?,
    };
    let previous = group.next_number.saturating_sub(1);
    let incarnation = pass.incarnation;
    Ok(Command::StartAttempt { group: group.id, previous, rung, placed, restore, incarnation })
}

/// After a disaster recovery nobody knows where an exclusive job ran last: its worker may be on a node that the log says
/// nothing of. Whatever lease that node had ends within one full lease of this leader's beginning (invariant 23).
fn lost_time_left(pass: &Pass<'_>, job: &Job, group: &Group) -> Option<Millis> {
    let state = pass.state;
    let is_older = job.id.0 < state.generation_first_job
        && group.newest().is_none_or(|attempt| attempt.id.generation < state.generation);
    if !job.spec.exclusive || !is_older {
        return None;
    }
    let lease_ms = Timers::of(state.config.as_ref()?.profile).leader_lease_ms();
    lease_ms.checked_sub(pass.now.boot.since(pass.seen.leader_since)).filter(|left_ms| *left_ms > 0)
}

fn held_anywhere(group: &Group) -> Option<(&Attempt, &Assignment)> {
    let mut seats =
        group.attempts.iter().flat_map(|attempt| attempt.assignments.iter().map(move |seat| (attempt, seat)));
    seats.find(|(_, seat)| seat.is_held())
}

fn anew<'j>(job: &'j Job, group: &'j Group, avoid: BTreeMap<u32, NodeId>) -> Wanted<'j> {
    Wanted { job, group, stay: BTreeMap::new(), avoid }
}

/// Rungs 1 to 3.
///
/// Ranks that stay wait for their predecessor's release: it says that the node is alive, and that nothing of the old
/// attempt is in the way. After the loss of another node they need not, where there is room beside the old worker:
/// that node was heard a moment ago, and its agent stops the old worker on its own.
fn place_again(
    pass: &mut Pass<'_>,
    job: &Job,
    group: &Group,
    previous: &Attempt,
) -> Result<(Rung, Vec<Placed>), String> {
    let mut stay = BTreeMap::new();
    let mut avoid = BTreeMap::new();
    let mut unreleased = None;
    let stopping_ms = stopping_for(pass, &previous.id);
    let patient = stopping_ms < RELEASE_WAIT_MS && previous.phase == AttemptPhase::Stopping;
    let machine_gone = matches!(previous.cause, Some(Cause::NodeLost { .. } | Cause::NodeRestarted { .. }));
    for seat in &previous.assignments {
        let stuck = seat.is_held() && !patient;
        if stuck || must_move(pass, job, group, previous, seat) {
            avoid.insert(seat.rank, seat.node.clone());
            continue;
        }
        if seat.is_held() {
            let why = format!("rank {} of {} is not released on {} yet", seat.rank, previous.id, seat.node);
            if !machine_gone || !pass.ledger.is_usable(&seat.node) {
                return Err(not_yet(pass, stopping_ms, why));
            }
            unreleased = Some(why);
        }
        stay.insert(seat.rank, seat.node.clone());
    }
    if !stay.is_empty() || previous.assignments.len() == 1 {
        let rung = if avoid.is_empty() { Rung::InPlace } else { Rung::RankMoved };
        let wanted = Wanted { job, group, stay, avoid: avoid.clone() };
        if let Ok(placed) = pass.ledger.place(&wanted) {
            return Ok((rung, placed));
        }
    }
    if let Some(why) = unreleased {
        return Err(not_yet(pass, stopping_ms, why));
    }
    Ok((Rung::Replaced, pass.ledger.place(&anew(job, group, avoid))?))
}

fn not_yet(pass: &mut Pass<'_>, stopping_ms: Millis, why: String) -> String {
    pass.plan.check_in(RELEASE_WAIT_MS.saturating_sub(stopping_ms));
    why
}

/// Whether a rank cannot, or should not, go back to where it was. A Suspect node is waited for: it is heard again, or
/// Lost, within half a lease.
fn must_move(pass: &Pass<'_>, job: &Job, group: &Group, previous: &Attempt, seat: &Assignment) -> bool {
    let suspect = pass.seen.suspects.contains(&seat.node) && seat.is_held();
    let usable = pass.ledger.is_usable(&seat.node) && pass.ledger.suits(&job.spec, &seat.node);
    if seat.phase == AssignmentPhase::Lost || (!usable && !suspect) {
        return true;
    }
    let culprit = culprit(previous);
    if culprit.as_ref() != Some(&(seat.rank, seat.node.clone())) {
        return false;
    }
    let broken_gpu = matches!(previous.cause, Some(Cause::GpuError { .. }));
    let before = group.attempts.iter().rev().nth(1).filter(|before| before.outcome == Some(Outcome::Failed));
    broken_gpu || before.is_some_and(|before| self::culprit(before) == culprit)
}

/// The rank that an attempt failed at, and where it was.
fn culprit(attempt: &Attempt) -> Option<(u32, NodeId)> {
    let rank = attempt.cause.as_ref()?.rank()?;
    Some((rank, attempt.assignment(rank)?.node.clone()))
}
