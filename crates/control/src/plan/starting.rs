//! An attempt that does not come to run is stopped: a bundle that nobody hands over, a restore that stands still, a rank
//! that waits for a rendezvous which never comes must not hold their nodes for ever.

use outlast_types::{Cause, Millis, NodeId};

use super::Pass;
use crate::state::{Assignment, Attempt, AttemptPhase, Command, Job};

/// From the entry that starts an attempt to the start of its last rank, restore not counted. The largest bundle (256
/// MiB) takes seconds on a good network and minutes on a bad one; the rest is done in seconds.
const STARTING_MAX_MS: Millis = 10 * 60_000;
/// What a node restores at the least, in bytes a millisecond: 10 MB/s, a tenth of what one spinning disk or one Gigabit
/// link gives, because both may be shared.
const RESTORED_A_MS_MIN: u64 = 10_000;
/// Ranks that one cause names: it stays in the state, and a gang may have thousands.
const RANKS_NAMED_MAX: usize = 16;

/// Says whether a stop was planned.
pub(super) fn plan(pass: &mut Pass<'_>, job: &Job, attempt: &Attempt) -> bool {
    if attempt.phase != AttemptPhase::Starting {
        return false;
    }
    let since = pass.seen.starting_since.get(&attempt.id).copied().unwrap_or(pass.now.boot);
    let waited_ms = pass.now.boot.since(since);
    let limit_ms = STARTING_MAX_MS.saturating_add(restore_ms(job, attempt));
    if waited_ms < limit_ms {
        pass.plan.check_in(limit_ms - waited_ms);
        return false;
    }
    let cause = cause(attempt, waited_ms);
    let evidence = cause.to_string();
    let command =
        Command::StopAttempt { attempt: attempt.id, cause, graceful: false, incarnation: pass.incarnation };
    pass.plan.push(command, Some(evidence));
    true
}

fn cause(attempt: &Attempt, waited_ms: Millis) -> Cause {
    let mut ranks: Vec<(u32, NodeId)> =
        attempt.waits_for().map(|seat| (seat.rank, seat.node.clone())).collect();
    let others = ranks.len().saturating_sub(RANKS_NAMED_MAX) as u32;
    ranks.truncate(RANKS_NAMED_MAX);
    Cause::StartTimeout { ranks, others, waited_ms }
}

/// Room for the restore: of the node that has most to read.
fn restore_ms(job: &Job, attempt: &Attempt) -> Millis {
    let Some(checkpoint) = attempt.restore.from.and_then(|seq| job.checkpoints.get(&seq)) else { return 0 };
    let bytes_of = |seat: &Assignment| {
        let shard = checkpoint.shards.iter().find(|shard| shard.rank == seat.rank);
        shard.map_or(0, |shard| shard.size_bytes)
    };
    let bytes_at = |node: &NodeId| -> u64 {
        let here = attempt.assignments.iter().filter(|seat| seat.node == *node);
        here.map(bytes_of).fold(0, u64::saturating_add)
    };
    attempt.assignments.iter().map(|seat| bytes_at(&seat.node)).max().unwrap_or(0) / RESTORED_A_MS_MIN
}
