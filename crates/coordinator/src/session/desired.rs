//! What a node should run, computed from the applied state alone: the same state gives the same answer at every
//! coordinator.

use std::cell::LazyCell;

use outlast_control::state::{
    AdoptedWorker, Assignment, AssignmentPhase, Attempt, AttemptPhase, Bundle, Checkpoint, ClusterState, Job,
    JobState, Node, NodeCondition,
};
use outlast_proto::node::v1 as pb;
use outlast_types::spec::{Every, ReadyCheck};
use outlast_types::{Durability, NodeId};

/// Enough to see whether the network is as it should be.
const PROBE_PEERS_MAX: usize = 2;
/// Holders that are named for a shard or a bundle.
const HOLDERS_MAX: usize = 16;
/// `checkpoint: {every: auto}` until the first save has shown what one costs.
const AUTO_EVERY_MS: u64 = 30_000;

/// Everything that the node holds. Absence stops nothing (the agent keeps that rule); `stop` does.
pub(super) fn desired_workers(state: &ClusterState, node: &NodeId) -> Vec<pb::DesiredWorker> {
    // Every node is looked at for it: once, however many workers there are.
    let domains = LazyCell::new(|| state.live_domains().len());
    state
        .held_on(node)
        .map(|(job, _, attempt, assignment)| desired_worker(state, node, job, attempt, assignment, *domains))
        .collect()
}

/// Stops for workers that outlived their record: an agent that was away for long comes back with attempts that the log
/// has let go of, and absence would never stop them. Only for a state that has the registration which named them: there
/// every worker that the log still wants is held.
pub(super) fn orphans(
    state: &ClusterState,
    node: &NodeId,
    adopted: &[AdoptedWorker],
) -> Vec<pb::DesiredWorker> {
    let is_held = |worker: &AdoptedWorker| {
        state
            .held_on(node)
            .any(|(_, _, attempt, held)| (attempt.id, held.rank) == (worker.attempt, worker.rank))
    };
    let stopped = |worker: &AdoptedWorker| pb::DesiredWorker {
        attempt: worker.attempt.to_string(),
        rank: worker.rank,
        stop: true,
        ..pb::DesiredWorker::default()
    };
    adopted.iter().filter(|worker| !is_held(worker)).map(stopped).collect()
}

fn desired_worker(
    state: &ClusterState,
    node: &NodeId,
    job: &Job,
    attempt: &Attempt,
    assignment: &Assignment,
    live_domains: usize,
) -> pb::DesiredWorker {
    let spec = &job.spec;
    let stop = is_stopped(job, attempt);
    let (local_rank, local_world_size) = local_place(attempt, assignment);
    let chosen = job.group(attempt.id.group.index).and_then(|group| group.interval);
    let (checkpoint_every_ms, checkpoint_every_steps) = match spec.checkpoint.every {
        Every::Time(span) => (span.millis(), 0),
        Every::Steps(steps) => (0, steps),
        Every::Auto => (chosen.map_or(AUTO_EVERY_MS, |chosen| chosen.every_ms), 0),
    };
    let wanted = ClusterState::wanted_durability(spec, live_domains);
    let replicas = if wanted == Durability::Local { 1 } else { 2 };
    let replica_peers = if replicas > 1 { state.replica_peers(node, assignment.rank) } else { Vec::new() };
    pb::DesiredWorker {
        attempt: attempt.id.to_string(),
        rank: assignment.rank,
        world_size: attempt.world_size(),
        local_rank,
        local_world_size,
        stop,
        stop_grace_ms: if stop && is_graceful(job, attempt) { spec.recovery.stop_grace.millis() } else { 0 },
        job_name: spec.name.clone(),
        kind: spec.kind.as_str().to_owned(),
        command: spec.command.clone(),
        env: spec.env.clone().into_iter().collect(),
        cpu_millis: assignment.resources.cpu_millis,
        memory_bytes: assignment.resources.memory.0,
        gpus: assignment.gpus.clone(),
        exclusive: spec.exclusive,
        rendezvous: attempt.rendezvous.clone().unwrap_or_default(),
        bundle: job.bundle.as_ref().map(|bundle| bundle_source(state, bundle)),
        restore: restore_source(state, node, job, attempt, assignment.rank),
        checkpoint_every_ms,
        checkpoint_every_steps,
        checkpoint_now: !stop && attempt.checkpoint_requested,
        replica_peers: replica_peers.into_iter().map(peer).collect(),
        replicas,
        ready: spec.ready.as_ref().map(ready_check),
        may_start: !stop && assignment.phase == AssignmentPhase::Assigned,
    }
}

fn is_stopped(job: &Job, attempt: &Attempt) -> bool {
    matches!(attempt.phase, AttemptPhase::Stopping | AttemptPhase::Ended) || job.is_ending()
}

/// A failed attempt is killed at once: its successor waits for the resources. Who is asked to leave gets the time that
/// the job says.
fn is_graceful(job: &Job, attempt: &Attempt) -> bool {
    attempt.graceful_stop || matches!(job.state, JobState::Cancelling | JobState::Cancelled)
}

fn local_place(attempt: &Attempt, assignment: &Assignment) -> (u32, u32) {
    let here = |other: &&Assignment| other.node == assignment.node;
    let before = attempt.assignments.iter().filter(here).filter(|other| other.rank < assignment.rank).count();
    (before as u32, attempt.assignments.iter().filter(here).count() as u32)
}

pub(super) fn peer(node: &Node) -> pb::Peer {
    pb::Peer { node: node.id.to_string(), address: node.peer_address().to_owned() }
}

fn is_alive(node: &Node) -> bool {
    node.condition == NodeCondition::Registered
}

pub(super) fn bundle_source(state: &ClusterState, bundle: &Bundle) -> pb::Bundle {
    let alive =
        bundle.holders.iter().filter_map(|holder| state.nodes.get(holder)).filter(|node| is_alive(node));
    pb::Bundle {
        digest: bundle.digest.0.to_vec(),
        size_bytes: bundle.size_bytes,
        holders: alive.take(HOLDERS_MAX).map(peer).collect(),
    }
}

fn restore_source(
    state: &ClusterState,
    node: &NodeId,
    job: &Job,
    attempt: &Attempt,
    rank: u32,
) -> Option<pb::Restore> {
    let checkpoint: &Checkpoint = job.checkpoints.get(&attempt.restore.from?)?;
    let shard = checkpoint.shards.iter().find(|shard| shard.rank == rank)?;
    let mut holders: Vec<&Node> =
        state.live_holders(&shard.holders).filter_map(|holder| state.nodes.get(&holder.node)).collect();
    // The own disk first.
    holders.sort_by_key(|holder| holder.id != *node);
    Some(pb::Restore {
        checkpoint: checkpoint.seq.to_string(),
        step: checkpoint.step,
        attempt: checkpoint.attempt.to_string(),
        root: shard.root.0.to_vec(),
        size_bytes: shard.size_bytes,
        holders: holders.into_iter().take(HOLDERS_MAX).map(peer).collect(),
        stored: checkpoint.stored_at.is_some(),
    })
}

/// With whom a node that registers tries its data network.
pub(super) fn probe_peers(state: &ClusterState, node: &NodeId) -> Vec<pb::Peer> {
    state.replica_peers(node, 0).into_iter().take(PROBE_PEERS_MAX).map(peer).collect()
}

fn ready_check(check: &ReadyCheck) -> pb::ReadyCheck {
    match check {
        ReadyCheck::Worker => pb::ReadyCheck { kind: "worker".to_owned(), port: 0, path: String::new() },
        ReadyCheck::Tcp { port } => {
            pb::ReadyCheck { kind: "tcp".to_owned(), port: (*port).into(), path: String::new() }
        }
        ReadyCheck::Http { port, path } => {
            pb::ReadyCheck { kind: "http".to_owned(), port: (*port).into(), path: path.clone() }
        }
    }
}
