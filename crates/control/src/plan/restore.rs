//! Which checkpoint an attempt starts from. "There is none" and "it cannot be read now" are different answers: step
//! zero is never chosen while any sealed checkpoint exists (invariant 35).

use super::{AGAIN_MS, Pass};
use crate::state::{Checkpoint, Command, Group, Job, RestoreDecision};

pub(super) enum Restore {
    From(RestoreDecision),
    Wait(String),
}

pub(super) fn decide(pass: &mut Pass<'_>, job: &Job, group: &Group) -> Restore {
    let sealed = job.sealed_of(group.id.index);
    let mut passed_over = Vec::new();
    for checkpoint in &sealed {
        if pass.state.is_good(checkpoint) {
            return Restore::From(RestoreDecision { from: Some(checkpoint.seq), passed_over });
        }
        if let Some(rank) = lost_rank(checkpoint) {
            return quarantine(pass, job, checkpoint, rank);
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

/// A rank whose bytes nobody has any more: every disk that held them was replaced.
fn lost_rank(checkpoint: &Checkpoint) -> Option<u32> {
    checkpoint.shards.iter().find(|shard| shard.holders.is_empty()).map(|shard| shard.rank)
}

/// Nothing can bring it back, so waiting for it would be for ever.
fn quarantine(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint, rank: u32) -> Restore {
    let reason = format!("no holder of rank {rank} is left: every disk that had it was replaced");
    let command = Command::QuarantineCheckpoint { job: job.id, seq: checkpoint.seq, reason: reason.clone() };
    pass.plan.push(command, Some(reason.clone()));
    pass.plan.check_in(AGAIN_MS);
    Restore::Wait(format!("{}: {reason}", checkpoint.seq))
}

fn away(pass: &Pass<'_>, checkpoint: &Checkpoint) -> String {
    let unreachable = |holders: &[_]| pass.state.live_holders(holders).next().is_none();
    let Some(shard) = checkpoint.shards.iter().find(|shard| unreachable(&shard.holders)) else {
        return "its holders are back".to_owned();
    };
    let nodes: Vec<&str> = shard.holders.iter().map(|holder| holder.node.as_str()).collect();
    format!("rank {} is held only by {}, which is away", shard.rank, nodes.join(", "))
}
