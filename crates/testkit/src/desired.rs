//! What a node should do, and what became of checkpoints, computed from an applied state alone
//! (`coordinator/src/session/{desired,orders,checkpoints}.rs`).

use outlast_control::state::{
    Assignment, AssignmentPhase, Attempt, AttemptPhase, Checkpoint, ClusterState, Job, JobState, ShardRecord,
    ShardTask,
};
use outlast_types::spec::Every;
use outlast_types::{CheckpointSeq, Durability, JobId, JobKind, NodeId};

use crate::assigned::{Assigned, Desired, OrderKey, RestoreFrom, ShardKey, ShardOrder, WorkerKey};
use crate::event::{Adopted, Update};

const ORDERS_MAX: usize = 64;

pub(crate) fn took_part(state: &ClusterState, node: &NodeId, job: JobId, seq: CheckpointSeq) -> bool {
    let Some(checkpoint) = state.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq)) else {
        return false;
    };
    let holds = checkpoint.shards.iter().flat_map(|shard| &shard.holders).any(|holder| holder.node == *node);
    holds || state.attempt(&checkpoint.attempt).is_some_and(|a| a.assignments.iter().any(|a| a.node == *node))
}

/// `None`: nothing is known that the agent could act on.
pub(crate) fn update(state: &ClusterState, node: &NodeId, job: JobId, seq: CheckpointSeq) -> Option<Update> {
    let record = state.jobs.get(&job);
    let Some(checkpoint) = record.and_then(|job| job.checkpoints.get(&seq)) else {
        let is_gone = match record {
            Some(job) => seq.0 < job.next_checkpoint,
            None => job.0 < state.next_job,
        };
        return is_gone.then(|| Update { job, seq, state: None, here: Vec::new(), roots: Vec::new() });
    };
    let disk = state.nodes.get(node).map(|node| &node.disk);
    let here = checkpoint.shards.iter().filter(|shard| {
        shard.holders.iter().any(|holder| holder.node == *node && Some(&holder.disk) == disk)
    });
    let key = |rank| ShardKey { attempt: checkpoint.attempt, seq, rank };
    Some(Update {
        job,
        seq,
        state: Some(checkpoint.state),
        here: here.map(|shard| (key(shard.rank), shard.root)).collect(),
        roots: checkpoint.shards.iter().map(|shard| shard.root).collect(),
    })
}

/// What the node should do.
pub(crate) fn desired(state: &ClusterState, node: &NodeId, adopted: &Adopted) -> Desired {
    let mut workers: Vec<Assigned> = state
        .held_on(node)
        .map(|(job, _, attempt, seat)| assigned(state, node, job, attempt, seat))
        .collect();
    for worker in adopted {
        let key = WorkerKey { attempt: worker.attempt, rank: worker.rank };
        if !workers.iter().any(|held| held.key == key) {
            workers.push(orphan(key));
        }
    }
    Desired { index: state.applied, workers, orders: orders(state, node) }
}

/// Outlived its record: absence would never stop it.
fn orphan(key: WorkerKey) -> Assigned {
    Assigned {
        key,
        world_size: 1,
        stop: Some(0),
        kind: JobKind::Training,
        exclusive: false,
        has_rendezvous: false,
        restore: None,
        every_steps: 0,
        steps: 0,
        checkpoint_now: false,
        replica_peers: Vec::new(),
        replicas: 1,
        may_start: false,
    }
}

fn assigned(
    state: &ClusterState,
    node: &NodeId,
    job: &Job,
    attempt: &Attempt,
    seat: &Assignment,
) -> Assigned {
    let spec = &job.spec;
    let stop = matches!(attempt.phase, AttemptPhase::Stopping | AttemptPhase::Ended) || job.is_ending();
    let graceful = attempt.graceful_stop || matches!(job.state, JobState::Cancelling | JobState::Cancelled);
    let grace_ms = if graceful { spec.recovery.stop_grace.millis() } else { 0 };
    let wanted = ClusterState::wanted_durability(spec, state.live_domains().len());
    let replicas = if wanted == Durability::Local { 1 } else { 2 };
    let replica_peers = if replicas > 1 { state.replica_peers(node, seat.rank) } else { Vec::new() };
    let every_steps = match spec.checkpoint.every {
        Every::Steps(steps) => steps,
        Every::Time(_) | Every::Auto => 0,
    };
    Assigned {
        key: WorkerKey { attempt: attempt.id, rank: seat.rank },
        world_size: attempt.world_size(),
        stop: stop.then_some(grace_ms),
        kind: spec.kind,
        exclusive: spec.exclusive,
        has_rendezvous: attempt.rendezvous.is_some(),
        restore: restore_from(state, node, job, attempt, seat.rank),
        every_steps,
        steps: spec.env.get("STEPS").and_then(|steps| steps.parse().ok()).unwrap_or(0),
        checkpoint_now: !stop && attempt.checkpoint_requested,
        replica_peers: replica_peers.into_iter().map(|peer| peer.id.clone()).collect(),
        replicas,
        may_start: !stop && seat.phase == AssignmentPhase::Assigned,
    }
}

fn restore_from(
    state: &ClusterState,
    node: &NodeId,
    job: &Job,
    attempt: &Attempt,
    rank: u32,
) -> Option<RestoreFrom> {
    let checkpoint = job.checkpoints.get(&attempt.restore.from?)?;
    let shard = checkpoint.shard(rank)?;
    let mut holders: Vec<NodeId> =
        state.live_holders(&shard.holders).map(|holder| holder.node.clone()).collect();
    holders.sort_by_key(|holder| holder != node);
    let shard_key = ShardKey { attempt: checkpoint.attempt, seq: checkpoint.seq, rank };
    Some(RestoreFrom { shard: shard_key, root: shard.root, holders })
}

fn orders(state: &ClusterState, node: &NodeId) -> Vec<ShardOrder> {
    let mut orders: Vec<_> = state.orders_of(node).collect();
    orders.sort_by_key(|(task, ..)| *task);
    orders.truncate(ORDERS_MAX);
    let order = |(task, checkpoint, shard): (ShardTask, &Checkpoint, &ShardRecord)| {
        let key = ShardKey { attempt: checkpoint.attempt, seq: checkpoint.seq, rank: shard.rank };
        let holders = state.live_holders(&shard.holders).map(|holder| holder.node.clone());
        ShardOrder { key: OrderKey { task, shard: key, root: shard.root }, holders: holders.collect() }
    };
    orders.into_iter().map(order).collect()
}
