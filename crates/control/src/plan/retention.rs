//! What may go: checkpoints that enough newer ones have replaced, and jobs whose retention time is over.

use std::collections::BTreeMap;

use super::{AGAIN_MS, COMMANDS_MAX, Pass};
use crate::state::{Checkpoint, Command, Job};

/// Proposes what `apply` would accept now; `apply` asks the same question again.
pub(super) fn retire(pass: &mut Pass<'_>, job: &Job) {
    let keep = job.spec.checkpoint.keep.max(1) as usize;
    let mut by_group: BTreeMap<u32, Vec<&Checkpoint>> = BTreeMap::new();
    for checkpoint in job.checkpoints.values().filter(|checkpoint| checkpoint.is_sealed()) {
        by_group.entry(checkpoint.attempt.group.index).or_default().push(checkpoint);
    }
    for checkpoint in by_group.into_values().filter(|sealed| sealed.len() > keep).flatten() {
        if pass.state.may_retire(job.id, checkpoint.seq).is_ok() {
            let command = Command::RetireCheckpoint {
                job: job.id,
                seq: checkpoint.seq,
                incarnation: Some(pass.incarnation),
            };
            pass.plan.push(command, Some(format!("{keep} newer ones are kept")));
        }
    }
}

pub(super) fn expire(pass: &mut Pass<'_>) {
    let state = pass.state;
    for (due, id) in &state.index.expiring {
        if *due > pass.now.wall {
            pass.plan.check_in(due.since(pass.now.wall).min(60_000));
            return;
        }
        if pass.plan.commands.len() >= COMMANDS_MAX {
            return pass.plan.check_in(AGAIN_MS);
        }
        let pinned = |job: &Job| {
            job.checkpoints.values().any(|checkpoint| checkpoint.pinned && checkpoint.is_sealed())
        };
        if state.held_by_job(*id) == 0 && !state.jobs.get(id).is_none_or(pinned) {
            pass.plan.push(Command::ExpireJob { job: *id, incarnation: pass.incarnation }, None);
        }
    }
}
