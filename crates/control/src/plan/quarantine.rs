//! A node that keeps failing jobs gets no new work, with the evidence.

use std::collections::{BTreeMap, BTreeSet};

use outlast_types::{CauseClass, JobId, Millis, NodeId, WallTime};

use super::Pass;
use crate::state::{Attempt, Command};

/// Failures longer ago than this are no evidence.
const WINDOW_MS: Millis = 60 * 60_000;
const INFRASTRUCTURE_FAILURES_MIN: usize = 3;
const FAILURES_MIN: usize = 5;
/// One job that fails everywhere says nothing about a node.
const JOBS_MIN: usize = 2;

/// By the time of the failure: all that ended in one entry is one failure, or the loss of a node with many jobs would
/// look like a habit.
#[derive(Default)]
struct Evidence {
    infrastructure: BTreeSet<WallTime>,
    all: BTreeSet<WallTime>,
    jobs: BTreeSet<JobId>,
}

pub(super) fn plan(pass: &mut Pass<'_>) {
    // The only node left is better than none.
    if pass.ledger.usable() < 2 {
        return;
    }
    let mut evidence: BTreeMap<NodeId, Evidence> = BTreeMap::new();
    // Also of jobs that are over: a node that makes every short job fail has no other record. What the index does not
    // hold costs nothing: a pass looks at the failures of one hour, however many jobs there are.
    for (at, attempt) in pass.state.failures_within(WINDOW_MS, pass.now.wall) {
        gather(pass, at, attempt, &mut evidence);
    }
    let mut spare = pass.ledger.usable() - 1;
    for (node, found) in evidence {
        let enough =
            found.infrastructure.len() >= INFRASTRUCTURE_FAILURES_MIN || found.all.len() >= FAILURES_MIN;
        if !enough || found.jobs.len() < JOBS_MIN || spare == 0 {
            continue;
        }
        spare -= 1;
        let jobs: Vec<String> = found.jobs.iter().map(JobId::to_string).collect();
        let reason = format!(
            "{} failures here within an hour, {} of them of the machine, in jobs {}",
            found.all.len(),
            found.infrastructure.len(),
            jobs.join(", ")
        );
        let command =
            Command::QuarantineNode { node, reason: reason.clone(), incarnation: Some(pass.incarnation) };
        pass.plan.push(command, Some(reason));
    }
}

fn gather(pass: &Pass<'_>, at: WallTime, attempt: &Attempt, evidence: &mut BTreeMap<NodeId, Evidence>) {
    let Some(cause) = &attempt.cause else { return };
    let Some(node) = cause.node() else { return };
    let watched = pass.ledger.is_usable(node)
        && pass.state.nodes.get(node).is_some_and(|node| at >= node.watched_since);
    if !watched {
        return;
    }
    let found = evidence.entry(node.clone()).or_default();
    found.all.insert(at);
    found.jobs.insert(attempt.id.group.job);
    if cause.class() == CauseClass::Infrastructure {
        found.infrastructure.insert(at);
    }
}
