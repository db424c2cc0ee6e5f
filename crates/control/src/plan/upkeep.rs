//! What sealed checkpoints still need: a copy where a holder went away, a proof that the bytes can be read back, a place
//! in the object store. Each is an order in the log, given to one node; who cannot carry it out says so, or is lost, and
//! another one is chosen.

use std::collections::{BTreeMap, BTreeSet};

use outlast_types::{Durability, Millis, NodeId};

use super::{AGAIN_MS, COMMANDS_MAX, Pass};
use crate::state::{
    Checkpoint, ClusterState, Command, Group, Holder, Job, Node, NodeCondition, ShardRecord, ShardTask,
};

/// Copies that one node makes at a time: more would only share its disk and its network.
const COPIES_PER_NODE_MAX: usize = 4;
/// A node that could not make a copy is not asked again for this one so soon: its disk is full, or its way is blocked.
const COPY_AGAIN_MS: Millis = 30_000;

/// A copy that failed again and again waits longer each time, up to this: what is wrong is not a moment's trouble.
const COPY_AGAIN_MS_MAX: Millis = 16 * 60_000;
/// A proof that takes longer than this, and than its bytes explain, goes to another holder: the disk does not answer, or
/// its agent fails for a reason that is no damage. Twice as long for each further one …
const PROVE_WITHIN_MS: Millis = 120_000;
/// … up to so many times.
const PROVE_DOUBLINGS_MAX: u32 = 4;
/// What a proof reads at least, beside training and other proofs.
const PROVE_BYTES_PER_MS: u64 = 32 << 10;

/// Nodes that may be given something to do, with their failure domains and the copies they make already.
pub(super) struct Nodes<'a> {
    usable: BTreeMap<&'a NodeId, (String, usize)>,
    domains: usize,
}

impl<'a> Nodes<'a> {
    pub(super) fn of(pass: &Pass<'a>) -> Self {
        let state: &'a ClusterState = pass.state;
        let copies = |node: &NodeId| {
            let orders = state.index.orders.get(node).into_iter().flatten();
            orders.filter(|(_, _, _, task)| *task == ShardTask::Copy).count()
        };
        let usable = |node: &&Node| {
            node.condition == NodeCondition::Registered
                && !node.draining
                && !pass.seen.suspects.contains(&node.id)
        };
        let usable = state.nodes.values().filter(usable);
        let usable = usable.map(|node| (&node.id, (node.failure_domain(), copies(&node.id)))).collect();
        Self { usable, domains: state.live_domains().len() }
    }
}

pub(super) fn plan(pass: &mut Pass<'_>, nodes: &mut Nodes<'_>, job: &Job, group: &Group) {
    let sealed = job.sealed_of(group.id.index);
    for checkpoint in &sealed {
        if pass.plan.commands.len() >= COMMANDS_MAX {
            return pass.plan.check_in(AGAIN_MS);
        }
        copy(pass, nodes, job, checkpoint);
        store(pass, job, checkpoint);
    }
    let readable: Vec<&Checkpoint> =
        sealed.iter().copied().filter(|checkpoint| is_on_disks(pass, checkpoint)).collect();
    if let Some(wanted) = wants_proof(&readable) {
        prove(pass, job, wanted);
    }
}

/// Orders copies of ranks that are in fewer failure domains than the job's policy wants, as far as there are others.
fn copy(pass: &mut Pass<'_>, nodes: &mut Nodes<'_>, job: &Job, checkpoint: &Checkpoint) {
    if ClusterState::wanted_durability(&job.spec, nodes.domains) == Durability::Local {
        return;
    }
    let mut orders = Vec::new();
    for shard in &checkpoint.shards {
        if shard.ordered(ShardTask::Copy).is_some() || !is_thin(pass, shard, checkpoint.stored_at.is_some()) {
            continue;
        }
        if let Some(node) = target(pass, nodes, checkpoint, shard) {
            orders.push((shard.rank, node));
        }
    }
    order(pass, job, checkpoint, ShardTask::Copy, orders, "too few holders are left");
}

/// Readable, but in one failure domain only. Holders on their way out do not count.
fn is_thin(pass: &Pass<'_>, shard: &ShardRecord, stored: bool) -> bool {
    let is_leaving = |holder: &Holder| pass.state.nodes.get(&holder.node).is_some_and(|node| node.draining);
    let staying: Vec<Holder> =
        pass.state.live_holders(&shard.holders).filter(|holder| !is_leaving(holder)).cloned().collect();
    let is_readable = pass.state.live_holders(&shard.holders).next().is_some() || stored;
    is_readable && pass.state.live_domains_of(&staying) < 2
}

/// A node in another failure domain, the one with the fewest copies to make; among equals the ranks take turns.
fn target(
    pass: &mut Pass<'_>,
    nodes: &mut Nodes<'_>,
    checkpoint: &Checkpoint,
    shard: &ShardRecord,
) -> Option<NodeId> {
    let holders: BTreeSet<&NodeId> = pass.state.live_holders(&shard.holders).map(|h| &h.node).collect();
    let held: BTreeSet<String> = holders
        .iter()
        .filter_map(|node| pass.state.nodes.get(*node))
        .filter(|node| !node.draining)
        .map(Node::failure_domain)
        .collect();
    let again_ms = copy_again_ms(shard);
    let failed_for = |node: &NodeId| {
        let (_, at) = shard.failed_copies.iter().find(|(failed, _)| failed == node)?;
        Some(pass.now.wall.since(*at)).filter(|for_ms| *for_ms < again_ms)
    };
    // As many as are remembered have failed lately: the trouble is with the source, not with the next one.
    if shard.failed_copies.len() >= ShardRecord::FAILED_COPIES_MAX
        && let Some((oldest, _)) = shard.failed_copies.first()
        && let Some(for_ms) = failed_for(oldest)
    {
        pass.plan.check_in(again_ms - for_ms);
        return None;
    }
    let mut wait_ms: Option<Millis> = None;
    let mut fits = Vec::new();
    for (node, (domain, copies)) in &nodes.usable {
        if holders.contains(node) || held.contains(domain) {
            continue;
        }
        match failed_for(node) {
            Some(for_ms) => {
                let left = again_ms - for_ms;
                wait_ms = Some(wait_ms.map_or(left, |wait| wait.min(left)));
            }
            None if *copies < COPIES_PER_NODE_MAX => fits.push((*copies, (*node).clone())),
            None => {}
        }
    }
    let Some(fewest) = fits.iter().map(|(copies, _)| *copies).min() else {
        // A copy that ends somewhere wakes the planner; a refusal that grows old does not.
        if let Some(wait_ms) = wait_ms {
            pass.plan.check_in(wait_ms);
        }
        return None;
    };
    let equals: Vec<&NodeId> = fits.iter().filter(|fit| fit.0 == fewest).map(|fit| &fit.1).collect();
    let turn = (u64::from(shard.rank) + checkpoint.seq.0) as usize % equals.len();
    let node = equals[turn].clone();
    if let Some((_, copies)) = nodes.usable.get_mut(&node) {
        *copies += 1;
    }
    Some(node)
}

/// How long a node that failed is left alone: doubled with each round in which all of them failed.
fn copy_again_ms(shard: &ShardRecord) -> Millis {
    let nodes = u32::try_from(shard.failed_copies.len()).unwrap_or(u32::MAX).max(1);
    let rounds = shard.copies_failed.div_ceil(nodes).saturating_sub(1);
    COPY_AGAIN_MS.saturating_mul(1 << rounds.min(16)).min(COPY_AGAIN_MS_MAX)
}

/// Puts every rank into the object store, from its first holder, where the job's policy says so.
fn store(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint) {
    if job.spec.checkpoint.durability != Some(Durability::Stored) || checkpoint.stored_at.is_some() {
        return;
    }
    let orders = missing(pass, checkpoint, ShardTask::Store);
    order(pass, job, checkpoint, ShardTask::Store, orders, "the job's policy is stored");
    if pass.seen.is_done_everywhere(job.id, checkpoint, ShardTask::Store) {
        let command =
            Command::StoreCheckpoint { job: job.id, seq: checkpoint.seq, incarnation: pass.incarnation };
        pass.plan.push(command, Some("the object store has every rank".to_owned()));
    }
}

/// Whether every rank can be read back from some disk now: else its proof would be waited for in vain, and nothing older
/// could ever go.
fn is_on_disks(pass: &Pass<'_>, checkpoint: &Checkpoint) -> bool {
    checkpoint.shards.iter().all(|shard| pass.state.live_holders(&shard.holders).next().is_some())
}

/// The checkpoint that is to be read back next: one that was begun, else the newest; none while the newest proven one is
/// newer than all others. So all ranks prove the same one, and a disk that proves slower than training saves skips some.
fn wants_proof<'a>(sealed: &[&'a Checkpoint]) -> Option<&'a Checkpoint> {
    let mut unproven = sealed.iter().take_while(|checkpoint| !checkpoint.proven);
    let begun = |checkpoint: &&&Checkpoint| {
        checkpoint.shards.iter().any(|shard| shard.ordered(ShardTask::Prove).is_some())
    };
    let newest = sealed.first().filter(|checkpoint| !checkpoint.proven);
    unproven.find(begun).or(newest).copied()
}

fn prove(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint) {
    let orders = missing(pass, checkpoint, ShardTask::Prove);
    order(pass, job, checkpoint, ShardTask::Prove, orders, "nothing newer was read back yet");
    let orders = overdue(pass, job, checkpoint);
    order(pass, job, checkpoint, ShardTask::Prove, orders, "its holder did not read it back in time");
    if pass.seen.is_done_everywhere(job.id, checkpoint, ShardTask::Prove) {
        let command =
            Command::ProveCheckpoint { job: job.id, seq: checkpoint.seq, incarnation: pass.incarnation };
        pass.plan.push(command, Some("a holder of every rank has read it back".to_owned()));
    }
}

/// Ranks that nobody was told to do this with, each with a live holder: the ranks take turns.
fn missing(pass: &Pass<'_>, checkpoint: &Checkpoint, task: ShardTask) -> Vec<(u32, NodeId)> {
    let unordered = checkpoint.shards.iter().filter(|shard| shard.ordered(task).is_none());
    let holder = |shard: &ShardRecord| {
        let can = |holder: &&Holder| {
            let node = pass.state.nodes.get(&holder.node);
            task != ShardTask::Store || node.is_some_and(|node| node.features.object_store)
        };
        let holders: Vec<&Holder> = pass.state.live_holders(&shard.holders).filter(can).collect();
        let holder = holders.get(shard.rank as usize % holders.len().max(1))?;
        Some((shard.rank, holder.node.clone()))
    };
    unordered.filter_map(holder).collect()
}

/// Ranks whose holder was told to read them back and did not, each with the next holder. Where there is no other one it
/// stays with this one, whose agent tries again by itself.
fn overdue(pass: &mut Pass<'_>, job: &Job, checkpoint: &Checkpoint) -> Vec<(u32, NodeId)> {
    let mut orders = Vec::new();
    for shard in &checkpoint.shards {
        let Some(told) = shard.ordered(ShardTask::Prove) else { continue };
        let key = (job.id, checkpoint.seq);
        let Some((for_ms, before)) = pass.seen.proving_for(key, shard.rank, pass.now.boot) else { continue };
        let within_ms = (PROVE_WITHIN_MS << before.min(PROVE_DOUBLINGS_MAX))
            .saturating_add(shard.size_bytes / PROVE_BYTES_PER_MS);
        if for_ms < within_ms {
            pass.plan.check_in(within_ms - for_ms);
            continue;
        }
        let live: Vec<&NodeId> = pass.state.live_holders(&shard.holders).map(|holder| &holder.node).collect();
        let at = live.iter().position(|node| *node == told).unwrap_or(0);
        let others = live.iter().cycle().skip(at + 1).take(live.len().saturating_sub(1));
        if let Some(next) = others.copied().find(|node| !pass.seen.suspects.contains(*node)) {
            orders.push((shard.rank, next.clone()));
        }
    }
    orders
}

fn order(
    pass: &mut Pass<'_>,
    job: &Job,
    checkpoint: &Checkpoint,
    task: ShardTask,
    orders: Vec<(u32, NodeId)>,
    why: &str,
) {
    if orders.is_empty() {
        return;
    }
    let (seq, incarnation) = (checkpoint.seq, pass.incarnation);
    let command = Command::OrderShards { job: job.id, seq, task, orders, incarnation };
    pass.plan.push(command, Some(why.to_owned()));
}
