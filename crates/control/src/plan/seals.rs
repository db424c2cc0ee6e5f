//! Which open checkpoints are complete, and at which level; which are given up.

use std::collections::BTreeMap;

use outlast_types::{Durability, Millis, NodeId};

use super::observations::Gathered;
use super::{COMMANDS_MAX, Pass, PlannedSeal};
use crate::state::{
    AssignmentPhase, Attempt, AttemptPhase, Checkpoint, CheckpointState, Command, Job, NodeCondition,
    SealedShard,
};

/// How long a complete checkpoint waits for its second copies while nodes are there that could take them: a peer with
/// a full disk must not keep it unsealed for ever.
const REPLICATION_WAIT_MS: Millis = 30_000;
/// An open checkpoint is given up after this long: no worker writes one shard for an hour.
const OPEN_MAX_MS: Millis = 60 * 60_000;
/// Holders that one seal names.
const HOLDERS_MAX: usize = 16;

pub(super) fn plan(pass: &mut Pass<'_>) {
    // Nodes that could take a copy, with their failure domains.
    let mut peers: Option<BTreeMap<NodeId, String>> = None;
    let state = pass.state;
    for job in state.active_jobs() {
        for checkpoint in
            job.checkpoints.values().filter(|checkpoint| checkpoint.state == CheckpointState::Open)
        {
            if pass.plan.seals.len() + pass.plan.commands.len() >= COMMANDS_MAX {
                return pass.plan.check_in(super::AGAIN_MS);
            }
            let peers = peers.get_or_insert_with(|| live_peers(pass));
            plan_one(pass, job, checkpoint, peers);
        }
    }
}

fn live_peers(pass: &Pass<'_>) -> BTreeMap<NodeId, String> {
    let live = pass.state.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
    let seen = pass.seen;
    let heard = live.filter(|node| !seen.suspects.contains(&node.id) && !seen.ailing.contains_key(&node.id));
    heard.map(|node| (node.id.clone(), node.failure_domain())).collect()
}

fn plan_one(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint, peers: &BTreeMap<NodeId, String>) {
    let key = (job.id, checkpoint.seq);
    let open_ms = pass.seen.open_since.get(&key).map_or(0, |since| pass.now.boot.since(*since));
    if open_ms >= OPEN_MAX_MS {
        return abort(pass, job, checkpoint, "not complete within an hour".to_owned());
    }
    if !pass.state.is_current(&checkpoint.attempt) {
        return;
    }
    let Some(gathered) = pass.seen.gathered.get(&key) else { return };
    if let Some(reason) = gathered.failure() {
        return abort(pass, job, checkpoint, reason);
    }
    let Some(shards) = complete(pass, checkpoint, gathered) else { return };
    let Some((durability, degraded)) = level(pass, job, gathered, &shards, peers) else { return };
    pass.plan.seals.push(PlannedSeal {
        job: job.id,
        seq: checkpoint.seq,
        attempt: checkpoint.attempt,
        step: checkpoint.step,
        world_size: checkpoint.world_size,
        shards,
        durability,
        degraded,
    });
}

fn abort(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint, reason: String) {
    let (seq, incarnation) = (checkpoint.seq, Some(pass.incarnation));
    let command = Command::AbortCheckpoint { job: job.id, seq, reason: reason.clone(), incarnation };
    pass.plan.push(command, Some(reason));
}

/// All ranks with their live holders; `None` while one has none.
fn complete(pass: &Pass<'_>, checkpoint: &Checkpoint, gathered: &Gathered) -> Option<Vec<SealedShard>> {
    let shard = |rank| {
        let receipt = gathered.ranks.get(&rank)?;
        let live = receipt.holders.iter().filter(|holder| pass.state.is_live_holder(holder));
        let holders: Vec<_> = live.take(HOLDERS_MAX).cloned().collect();
        let root = receipt.root.filter(|_| !holders.is_empty())?;
        Some(SealedShard { rank, root, size_bytes: receipt.size_bytes, holders })
    };
    (0..checkpoint.world_size).map(shard).collect()
}

/// The level to seal at now, and whether it is below the wanted one; `None`: more copies are on their way.
fn level(
    pass: &mut Pass<'_>,
    job: &Job,
    gathered: &Gathered,
    shards: &[SealedShard],
    peers: &BTreeMap<NodeId, String>,
) -> Option<(Durability, bool)> {
    let wanted = crate::state::ClusterState::wanted_durability(&job.spec, pass.state.live_domains().len());
    if wanted == Durability::Local {
        return Some((Durability::Local, false));
    }
    let thin: Vec<&SealedShard> =
        shards.iter().filter(|shard| pass.state.live_domains_of(&shard.holders) < 2).collect();
    if thin.is_empty() {
        // What is to be `stored` is so only after it is sealed.
        return Some((Durability::Replicated, false));
    }
    if !thin.iter().any(|shard| could_have_more(shard, peers)) {
        return Some((Durability::Local, true));
    }
    let waited_ms = gathered.complete_since.map_or(0, |since| pass.now.boot.since(since));
    if waited_ms >= REPLICATION_WAIT_MS {
        return Some((Durability::Local, true));
    }
    pass.plan.check_in(REPLICATION_WAIT_MS - waited_ms);
    None
}

/// Whether a node that is alive in another failure domain has no copy yet.
fn could_have_more(shard: &SealedShard, peers: &BTreeMap<NodeId, String>) -> bool {
    let held: Vec<&String> = shard.holders.iter().filter_map(|holder| peers.get(&holder.node)).collect();
    let is_holder = |node: &NodeId| shard.holders.iter().any(|holder| holder.node == *node);
    peers.iter().any(|(node, domain)| !is_holder(node) && !held.contains(&domain))
}

/// Whether something of a Stopping attempt is fully handed over and only has to arrive: every rank is staged on a
/// node that is alive, or has a live holder. While `hears_more`, a rank that nothing is known of may still be one of them:
/// a worker's end is told by another way than its receipts, and often before.
pub(super) fn salvage_is_pending(pass: &Pass<'_>, job: &Job, attempt: &Attempt, hears_more: bool) -> bool {
    debug_assert_eq!(attempt.phase, AttemptPhase::Stopping, "only a Stopping attempt is salvaged");
    let open = |checkpoint: &&Checkpoint| {
        checkpoint.state == CheckpointState::Open && checkpoint.attempt == attempt.id
    };
    job.checkpoints.values().filter(open).any(|checkpoint| {
        let gathered = pass.seen.gathered.get(&(job.id, checkpoint.seq));
        if gathered.is_some_and(|gathered| gathered.failure().is_some()) {
            return false;
        }
        attempt.assignments.iter().all(|seat| {
            let receipt = gathered.and_then(|gathered| gathered.ranks.get(&seat.rank));
            let Some(receipt) = receipt else { return hears_more && seat.phase != AssignmentPhase::Lost };
            let held = receipt.holders.iter().any(|holder| pass.state.is_live_holder(holder));
            held || (receipt.staged && seat.phase != AssignmentPhase::Lost)
        })
    })
}
