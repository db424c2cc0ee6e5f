//! What operators see: the state, with the leader's momentary knowledge, as messages of the control API.

mod interval;

use std::collections::BTreeMap;

use outlast_control::plan::NodeHealth;
use outlast_control::state::{
    Assignment, Attempt, AttemptPhase, Checkpoint, CheckpointState, ClusterState, Event, Group, Holder, Job,
    Node, NodeCondition, Outcome, Rung, ShardOrder,
};
use outlast_types::{AttemptId, Durability, GroupId, NodeId, WallTime};

use crate::control::v1 as pb;
use crate::time::Timestamp;

pub use interval::interval_text;
use interval::interval_view;

/// What only the leader knows; empty where nobody could ask it.
#[derive(Clone, Debug, Default)]
pub struct LeaderNotes {
    /// ready or suspect
    pub conditions: BTreeMap<NodeId, String>,
    /// As the newest heartbeat said.
    pub health: BTreeMap<NodeId, NodeHealth>,
    pub progress: BTreeMap<(AttemptId, u32), (u64, BTreeMap<String, f64>)>,
    /// Why a group has no attempt.
    pub waiting: BTreeMap<GroupId, String>,
}

fn stamp(time: Option<WallTime>) -> Option<Timestamp> {
    time.map(Into::into)
}

pub fn job_summary(job: &Job) -> pb::JobSummary {
    let sealed_step = job.checkpoints.values().filter(|c| c.is_sealed()).map(|c| c.step).max();
    pb::JobSummary {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        kind: job.spec.kind.as_str().to_owned(),
        state: job.state.as_str().to_owned(),
        reason: job.reason.clone().unwrap_or_default(),
        workers: job.spec.workers.max,
        attempts: job.groups.iter().map(attempts_total).sum(),
        sealed_step: sealed_step.unwrap_or(0),
        submitted_at: Some(job.submitted_at.into()),
        finished_at: stamp(job.finished_at),
    }
}

fn attempts_total(group: &Group) -> u64 {
    group.totals.attempts + group.attempts.len() as u64
}

pub fn job_view(state: &ClusterState, job: &Job, notes: &LeaderNotes) -> pb::Job {
    pb::Job {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        kind: job.spec.kind.as_str().to_owned(),
        state: job.state.as_str().to_owned(),
        reason: job.reason.clone().unwrap_or_default(),
        spec: serde_json::to_string(&job.spec).expect("a specification has text keys only"),
        submitted_by: job.actor.to_string(),
        submitted_at: Some(job.submitted_at.into()),
        finished_at: stamp(job.finished_at),
        bundle_digest: job.bundle.as_ref().map(|bundle| bundle.digest.to_string()).unwrap_or_default(),
        groups: job.groups.iter().map(|group| group_view(job, group, notes)).collect(),
        checkpoints: job.checkpoints.values().map(|checkpoint| checkpoint_view(state, checkpoint)).collect(),
        index: state.applied,
    }
}

fn group_view(job: &Job, group: &Group, notes: &LeaderNotes) -> pb::Group {
    pb::Group {
        id: group.id.to_string(),
        attempts: group.attempts.iter().map(|attempt| attempt_view(job, attempt, notes)).collect(),
        attempts_total: attempts_total(group),
        user_failures_since_progress: group.user_failures.since_progress,
        infrastructure_failures_since_progress: group.infrastructure_failures.since_progress,
        done: group.done,
        waiting: notes.waiting.get(&group.id).cloned().unwrap_or_default(),
        interval: Some(interval_view(job, group)),
    }
}

/// One word for a phase.
pub fn phase_word(phase: AttemptPhase) -> &'static str {
    match phase {
        AttemptPhase::Starting => "starting",
        AttemptPhase::Running => "running",
        AttemptPhase::Stopping => "stopping",
        AttemptPhase::Ended => "ended",
    }
}

/// One word for a rung of the recovery ladder.
pub fn rung_word(rung: Rung) -> &'static str {
    match rung {
        Rung::First => "first",
        Rung::InPlace => "in_place",
        Rung::RankMoved => "rank_moved",
        Rung::Replaced => "replaced",
    }
}

/// One word for an outcome.
pub fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
        Outcome::Moved => "moved",
    }
}

fn attempt_view(job: &Job, attempt: &Attempt, notes: &LeaderNotes) -> pb::Attempt {
    let restored = attempt.restore.from.and_then(|seq| job.checkpoints.get(&seq));
    let passed_over = attempt.restore.passed_over.iter().map(|(seq, why)| format!("{seq}: {why}")).collect();
    pb::Attempt {
        id: attempt.id.to_string(),
        number: attempt.id.number,
        phase: phase_word(attempt.phase).to_owned(),
        rung: rung_word(attempt.rung).to_owned(),
        outcome: attempt.outcome.as_ref().map(outcome_word).unwrap_or_default().to_owned(),
        assignments: attempt.assignments.iter().map(|a| assignment_view(attempt.id, a, notes)).collect(),
        rendezvous: attempt.rendezvous.clone().unwrap_or_default(),
        restore_from: attempt.restore.from.map(|seq| seq.to_string()).unwrap_or_default(),
        restore_step: restored.map_or(0, |checkpoint| checkpoint.step),
        created_at: Some(attempt.created_at.into()),
        running_at: stamp(attempt.running_at),
        stopping_at: stamp(attempt.stopping_at),
        ended_at: stamp(attempt.ended_at),
        cause: attempt.cause.as_ref().map(|cause| cause.code()).unwrap_or_default().to_owned(),
        cause_text: attempt.cause.as_ref().map(ToString::to_string).unwrap_or_default(),
        later_causes: attempt.later_causes.iter().map(ToString::to_string).collect(),
        passed_over,
    }
}

fn assignment_view(attempt: AttemptId, assignment: &Assignment, notes: &LeaderNotes) -> pb::Assignment {
    let phase = serde_json::to_value(assignment.phase).ok();
    let exit = assignment.exit.as_ref();
    let (step, metrics) = notes.progress.get(&(attempt, assignment.rank)).cloned().unwrap_or_default();
    pb::Assignment {
        rank: assignment.rank,
        node: assignment.node.to_string(),
        phase: phase.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned(),
        gpus: assignment.gpus.clone(),
        started_at: stamp(assignment.started_at),
        step,
        exit: exit.map(|exit| exit.status.to_string()).unwrap_or_default(),
        exit_detail: exit.map(|exit| exit.detail.clone()).unwrap_or_default(),
        exited_at: stamp(exit.map(|exit| exit.at)),
        last_lines: exit.map(|exit| exit.last_lines.clone()).unwrap_or_default(),
        metrics: metrics.into_iter().collect(),
    }
}

/// One word for a checkpoint's state.
pub fn checkpoint_word(state: CheckpointState) -> &'static str {
    match state {
        CheckpointState::Open => "open",
        CheckpointState::Sealed => "sealed",
        CheckpointState::Aborted => "aborted",
        CheckpointState::Quarantined => "quarantined",
        CheckpointState::Retired => "retired",
    }
}

fn durability_word(durability: Option<Durability>) -> String {
    durability.map_or("none", Durability::as_str).to_owned()
}

pub fn checkpoint_view(state: &ClusterState, checkpoint: &Checkpoint) -> pb::Checkpoint {
    let holder = |holder: &Holder| pb::ShardHolder {
        node: holder.node.to_string(),
        disk_id: holder.disk.to_string(),
        live: state.is_live_holder(holder),
    };
    let order = |order: &ShardOrder| pb::ShardOrder {
        task: order.task.as_str().to_owned(),
        node: order.node.to_string(),
    };
    let shards = checkpoint.shards.iter().map(|shard| pb::Shard {
        rank: shard.rank,
        root: shard.root.to_string(),
        size_bytes: shard.size_bytes,
        holders: shard.holders.iter().map(holder).collect(),
        orders: shard.orders.iter().map(order).collect(),
    });
    let wanted = state.jobs.get(&checkpoint.attempt.group.job).map(|job| state.durability_wanted(&job.spec));
    pb::Checkpoint {
        id: checkpoint.seq.to_string(),
        step: checkpoint.step,
        attempt: checkpoint.attempt.to_string(),
        state: checkpoint_word(checkpoint.state).to_owned(),
        world_size: checkpoint.world_size,
        size_bytes: checkpoint.size_bytes(),
        durability: checkpoint.durability.map(|level| level.as_str()).unwrap_or_default().to_owned(),
        degraded: checkpoint.degraded,
        proven: checkpoint.proven,
        pinned: checkpoint.pinned,
        manifest_root: checkpoint.manifest_root.map(|root| root.to_string()).unwrap_or_default(),
        opened_at: Some(checkpoint.opened_at.into()),
        sealed_at: stamp(checkpoint.sealed_at),
        reason: checkpoint.reason.clone().unwrap_or_default(),
        shards: shards.collect(),
        durability_now: durability_word(state.durability_now(checkpoint)),
        durability_wanted: durability_word(wanted),
        stored_at: stamp(checkpoint.stored_at),
        stale: checkpoint.stale,
    }
}

pub fn node_view(state: &ClusterState, node: &Node, notes: &LeaderNotes) -> pb::Node {
    let free = state.free_resources(&node.id);
    let condition = match node.condition {
        NodeCondition::Lost => "lost".to_owned(),
        NodeCondition::Registered => {
            notes.conditions.get(&node.id).cloned().unwrap_or_else(|| "ready".to_owned())
        }
    };
    let health = notes.health.get(&node.id).filter(|_| node.condition == NodeCondition::Registered);
    let complaint = || health.and_then(NodeHealth::complaint);
    let suspect_reason = match condition.as_str() {
        "suspect" => complaint().unwrap_or_else(|| "it is silent for half its lease or longer".to_owned()),
        _ => String::new(),
    };
    let workers = state.held_on(&node.id).map(|(_, _, attempt, a)| format!("{} rank {}", attempt.id, a.rank));
    pb::Node {
        id: node.id.to_string(),
        condition,
        cordoned: node.cordoned,
        draining: node.draining,
        quarantined: node.quarantined.clone().unwrap_or_default(),
        address: node.address.clone(),
        labels: node.all_labels().into_iter().collect(),
        failure_domain: node.failure_domain(),
        cpus: node.resources.cpu_millis as f64 / 1_000.0,
        cpus_free: free.cpu_millis as f64 / 1_000.0,
        memory_bytes: node.resources.memory.0,
        memory_free_bytes: free.memory.0,
        gpus: node.resources.gpus.len() as u32,
        gpus_free: free.gpus.len() as u32,
        custom: node.resources.custom.clone().into_iter().collect(),
        custom_free: free.custom.into_iter().collect(),
        cgroup_fence: node.features.cgroup_fence,
        workers: workers.collect(),
        registered_at: Some(node.registered_at.into()),
        lost_at: stamp(node.lost_at),
        boot_id: node.boot.to_string(),
        disk_id: node.disk.to_string(),
        registration: node.registration.to_string(),
        suspect_reason,
        health: health.cloned().map(health_view),
        data_address: node.data_address.clone().unwrap_or_default(),
    }
}

fn health_view(health: NodeHealth) -> pb::NodeHealth {
    let NodeHealth {
        disk_canary_age_ms,
        loop_lag_ms,
        disk_free_bytes,
        disk_size_bytes,
        gpu_error,
        network_bytes_per_s,
        network_error,
    } = health;
    pb::NodeHealth {
        disk_canary_age_s: disk_canary_age_ms as f64 / 1_000.0,
        loop_lag_s: loop_lag_ms as f64 / 1_000.0,
        disk_free_bytes,
        disk_size_bytes,
        gpu_error: gpu_error.unwrap_or_default(),
        network_bytes_per_s,
        network_error: network_error.unwrap_or_default(),
    }
}

/// An event as one sentence with its addressees.
pub fn event_view(event: &Event) -> pb::Event {
    let (kind, text) = (event.kind(), event.to_string());
    let job = event.job().map(|job| job.to_string()).unwrap_or_default();
    let attempt = event.attempt().map(|attempt| attempt.to_string()).unwrap_or_default();
    let node = event.node().map(ToString::to_string).unwrap_or_default();
    pb::Event { kind: kind.to_owned(), job, attempt, node, text }
}
