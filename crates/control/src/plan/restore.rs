//! Which checkpoint an attempt starts from. "There is none" and "it cannot be read now" are different answers: step
//! zero is never chosen while any sealed checkpoint exists (invariant 35).

use outlast_types::{Cause, CauseClass, CheckpointSeq};

use super::{AGAIN_MS, Pass};
use crate::planted::planted;
use crate::state::{Attempt, Checkpoint, CheckpointState, Command, Group, Job, RestoreDecision};

pub(super) enum Restore {
    From(RestoreDecision),
    Wait(String),
}

pub(super) fn decide(pass: &mut Pass<'_>, job: &Job, group: &Group) -> Restore {
    let sealed = job.sealed_of(group.id.index);
    let mut passed_over = Vec::new();
    for (i, checkpoint) in sealed.iter().enumerate() {
        if let Some(why) = failed_too_often(group, checkpoint).filter(|_| i + 1 < sealed.len()) {
            passed_over.push((checkpoint.seq, why));
            continue;
        }
        if pass.state.is_good(checkpoint) {
            return Restore::From(RestoreDecision { from: Some(checkpoint.seq), passed_over });
        }
        if let Some(rank) = lost_rank(checkpoint) {
            return quarantine(pass, job, checkpoint, rank);
        }
        if planted!(UnreadIsNone) {
            return Restore::From(RestoreDecision::default());
        }
        let wait_ms = job.spec.recovery.restore_wait.millis();
        let since = pass.seen.unreachable_since.get(&(group.id, checkpoint.seq)).copied();
        let for_ms = since.map_or(0, |since| pass.now.boot.since(since));
        let away = away(pass, checkpoint);
        if for_ms < wait_ms {
            pass.plan.check_in(wait_ms - for_ms);
            return Restore::Wait(format!(
                "{} at step {} cannot be read now: {away}",
                checkpoint.seq, checkpoint.step
            ));
        }
        passed_over.push((checkpoint.seq, format!("{away}; waited {:.0} s for it", for_ms as f64 / 1_000.0)));
    }
    match sealed.first() {
        None => Restore::From(RestoreDecision::default()),
        Some(newest) => Restore::Wait(format!(
            "none of {} sealed checkpoints can be read now ({}: {}); quarantine them to start from the beginning",
            sealed.len(),
            newest.seq,
            away(pass, newest)
        )),
    }
}

/// Attempts in a row that could not restore one checkpoint, after which an older one is tried: its live holders have
/// no good bytes, and one that may have them is away (else it would be quarantined).
const RESTORES_MAX: usize = 3;

fn failed_too_often(group: &Group, checkpoint: &Checkpoint) -> Option<String> {
    let failed = |attempt: &&Attempt| {
        attempt.restore.from == Some(checkpoint.seq)
            && matches!(attempt.cause, Some(Cause::RestoreFailed { .. }))
    };
    let failures = group.attempts.iter().filter(failed).count();
    (failures >= RESTORES_MAX).then(|| format!("{failures} attempts could not restore it"))
}

/// Attempts in a row that ended alike after the same checkpoint, before the checkpoint is suspected.
const POISON_TRIES: usize = 3;

/// The checkpoint that every attempt dies of, when the job would be given up otherwise and an older one can be read: its
/// bytes are what was saved, but what was saved may be no good (a NaN, a half-written file). Once: where the older one
/// does not help either, it is the program.
pub(super) fn poisoned(pass: &Pass<'_>, job: &Job, group: &Group) -> Option<(CheckpointSeq, String)> {
    let newest = group.newest()?;
    let (seq, cause) = (newest.restore.from?, newest.cause.as_ref()?);
    let is_alike = |attempt: &&Attempt| {
        attempt.restore.from == Some(seq)
            && attempt.cause.as_ref().is_some_and(|other| other.code() == cause.code())
    };
    let tries = group.attempts.iter().rev().take_while(is_alike).count();
    if tries < POISON_TRIES || cause.class() != CauseClass::User {
        return None;
    }
    let recency = job.checkpoints.get(&seq)?.recency();
    let is_second = |other: &Checkpoint| {
        other.attempt.group == group.id
            && other.state == CheckpointState::Quarantined
            && other.recency() > recency
    };
    let has_older = job
        .sealed_of(group.id.index)
        .into_iter()
        .any(|other| other.recency() < recency && pass.state.is_good(other));
    if !has_older || job.checkpoints.values().any(is_second) {
        return None;
    }
    Some((seq, format!("{tries} attempts in a row that started from it ended with {}", cause.code())))
}

/// A rank whose bytes nobody has any more: every disk that held them was replaced.
fn lost_rank(checkpoint: &Checkpoint) -> Option<u32> {
    if checkpoint.stored_at.is_some() {
        return None;
    }
    checkpoint.shards.iter().find(|shard| shard.holders.is_empty()).map(|shard| shard.rank)
}

/// Nothing can bring it back, so waiting for it would be for ever.
fn quarantine(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint, rank: u32) -> Restore {
    let reason = format!("no holder of rank {rank} is left: every disk that had it was replaced");
    let command = Command::QuarantineCheckpoint {
        job: job.id,
        seq: checkpoint.seq,
        reason: reason.clone(),
        incarnation: Some(pass.incarnation),
    };
    pass.plan.push(command, Some(reason.clone()));
    pass.plan.check_in(AGAIN_MS);
    Restore::Wait(format!("{}: {reason}", checkpoint.seq))
}

fn away(pass: &Pass<'_>, checkpoint: &Checkpoint) -> String {
    let unreachable = |holders: &[_]| pass.state.live_holders(holders).next().is_none();
    let Some(shard) = checkpoint.shards.iter().find(|shard| unreachable(&shard.holders)) else {
        return "its holders are back".to_owned();
    };
    if checkpoint.stored_at.is_some() && !pass.state.reaches_store() {
        let only = if shard.holders.is_empty() { "only" } else { "also" };
        return format!(
            "rank {} is {only} in the object store, and no node that is there was started with --store URL",
            shard.rank
        );
    }
    let nodes: Vec<&str> = shard.holders.iter().map(|holder| holder.node.as_str()).collect();
    format!("rank {} is held only by {}, which is away", shard.rank, nodes.join(", "))
}
