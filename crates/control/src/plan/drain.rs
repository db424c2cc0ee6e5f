//! Work leaves a draining node without losing a step: ask for a checkpoint, wait for its seal up to a deadline, move.

use outlast_types::{Cause, Millis, NodeId};

use super::Pass;
use crate::state::{Attempt, Checkpoint, Command, Job};

/// From the request for a checkpoint to the stop without it.
const SEAL_WAIT_MS: Millis = 30_000;

pub(super) fn plan(pass: &mut Pass<'_>, job: &Job, attempt: &Attempt) {
    let Some(node) = draining_node(pass, attempt) else { return };
    let saves = job.checkpoints.values().any(|checkpoint| checkpoint.attempt.group == attempt.id.group);
    if saves && !attempt.checkpoint_requested {
        let command = Command::RequestCheckpoint { attempt: attempt.id, incarnation: pass.incarnation };
        return pass.plan.push(command, Some(format!("node {node} is being drained")));
    }
    if saves && !is_saved(job, attempt) {
        let since = pass.seen.requested_since.get(&attempt.id).copied().unwrap_or(pass.now.boot);
        let waited_ms = pass.now.boot.since(since);
        if waited_ms < SEAL_WAIT_MS {
            pass.plan.check_in(SEAL_WAIT_MS - waited_ms);
            return;
        }
    }
    let cause = Cause::Drained { node };
    let evidence = cause.to_string();
    let command =
        Command::StopAttempt { attempt: attempt.id, cause, graceful: true, incarnation: pass.incarnation };
    pass.plan.push(command, Some(evidence));
}

fn draining_node(pass: &Pass<'_>, attempt: &Attempt) -> Option<NodeId> {
    let drains = |node: &&NodeId| pass.state.nodes.get(*node).is_some_and(|node| node.draining);
    let held = attempt.assignments.iter().filter(|seat| seat.is_held());
    held.map(|seat| &seat.node).find(drains).cloned()
}

/// Whether a checkpoint that was opened after the request is sealed.
fn is_saved(job: &Job, attempt: &Attempt) -> bool {
    let saved = |checkpoint: &Checkpoint| {
        checkpoint.is_sealed()
            && checkpoint.attempt == attempt.id
            && attempt.checkpoint_requested_from.is_some_and(|from| checkpoint.seq >= from)
    };
    job.checkpoints.values().any(saved)
}
