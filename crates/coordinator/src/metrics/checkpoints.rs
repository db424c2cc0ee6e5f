//! Numbers about checkpoints, read off the state: what could be restored now, and how many copies there are of it.

use std::collections::BTreeMap;

use outlast_control::state::{ClusterState, Job, ShardRecord, ShardTask};
use outlast_telemetry::CoordinatorMetrics;
use outlast_types::{CheckpointSeq, Durability, JobId};

/// Copies of shards by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Replicas {
    live: u64,
    /// Its node is lost, or has another disk.
    away: u64,
    /// Somebody was told to make it.
    copying: u64,
    /// Wanted, and nobody was told to make it.
    missing: u64,
}

impl Replicas {
    fn count(&mut self, state: &ClusterState, shard: &ShardRecord, wanted: usize) {
        let live = state.live_holders(&shard.holders).count();
        let copying = usize::from(shard.ordered(ShardTask::Copy).is_some());
        self.live += live as u64;
        self.away += (shard.holders.len() - live) as u64;
        self.copying += copying as u64;
        self.missing += wanted.saturating_sub(live + copying) as u64;
    }
}

/// From opened to sealed; `None` where the record has left the log already.
pub(super) fn seal_seconds(state: &ClusterState, job: JobId, seq: CheckpointSeq) -> Option<f64> {
    let checkpoint = state.jobs.get(&job)?.checkpoints.get(&seq)?;
    Some(checkpoint.sealed_at?.since(checkpoint.opened_at) as f64 / 1_000.0)
}

pub(super) fn count_seal(catalogue: &CoordinatorMetrics, took_s: Option<f64>) {
    if let Some(took_s) = took_s {
        let phase = vec![("phase", "seal".to_owned())];
        catalogue.checkpoint_duration.with(phase, |histogram| histogram.observe(took_s));
    }
}

pub(super) fn set(catalogue: &CoordinatorMetrics, state: &ClusterState) {
    catalogue.checkpoint_last_durable_step.clear();
    catalogue.checkpoint_last_durable_timestamp.clear();
    catalogue.checkpoint_last_stored_timestamp.clear();
    for job in state.active_jobs() {
        set_last_durable(catalogue, state, job);
        set_last_stored(catalogue, job);
    }
    let Replicas { live, away, copying, missing } = replicas(state);
    let by_state =
        BTreeMap::from([("live", live), ("away", away), ("copying", copying), ("missing", missing)]);
    for (word, count) in by_state {
        catalogue.checkpoint_replicas.with(vec![("state", word.to_owned())], |gauge| {
            gauge.set(count as f64);
        });
    }
}

/// Of what could be restored now: a checkpoint without holders is no comfort.
fn set_last_durable(catalogue: &CoordinatorMetrics, state: &ClusterState, job: &Job) {
    let readable = job
        .checkpoints
        .values()
        .filter(|checkpoint| checkpoint.is_sealed() && state.durability_now(checkpoint).is_some());
    let Some(newest) = readable.max_by_key(|checkpoint| checkpoint.recency()) else { return };
    let labels = vec![("job_name", job.spec.name.clone())];
    catalogue.checkpoint_last_durable_step.with(labels.clone(), |gauge| {
        gauge.set(newest.step as f64);
    });
    let sealed_at = newest.sealed_at.unwrap_or(newest.opened_at);
    catalogue.checkpoint_last_durable_timestamp.with(labels, |gauge| {
        gauge.set(sealed_at.0 as f64 / 1_000.0);
    });
}

/// What an alarm on an object store that is out of reach looks at: it grows old while the others do not.
fn set_last_stored(catalogue: &CoordinatorMetrics, job: &Job) {
    if job.spec.checkpoint.durability != Some(Durability::Stored) {
        return;
    }
    let stored = job.checkpoints.values().filter(|one| one.is_sealed() && one.stored_at.is_some());
    let Some(newest) = stored.max_by_key(|checkpoint| checkpoint.recency()) else { return };
    let sealed_at = newest.sealed_at.unwrap_or(newest.opened_at);
    let labels = vec![("job_name", job.spec.name.clone())];
    catalogue.checkpoint_last_stored_timestamp.with(labels, |gauge| {
        gauge.set(sealed_at.0 as f64 / 1_000.0);
    });
}

fn replicas(state: &ClusterState) -> Replicas {
    let mut replicas = Replicas::default();
    for job in state.jobs.values() {
        let wanted = match state.durability_wanted(&job.spec) {
            Durability::Local => 1,
            Durability::Replicated | Durability::Stored => 2,
        };
        let sealed = job.checkpoints.values().filter(|checkpoint| checkpoint.is_sealed());
        for shard in sealed.flat_map(|checkpoint| &checkpoint.shards) {
            replicas.count(state, shard, wanted);
        }
    }
    replicas
}

#[cfg(test)]
mod tests {
    use outlast_control::state::{Holder, ShardOrder, Tier};
    use outlast_types::{BootId, Digest, DiskId, NodeId};

    use super::*;

    #[test]
    fn copies_are_counted_by_what_they_are_worth_now() {
        let node = |name: &str| NodeId::new(name).expect("valid");
        // Nobody is registered, so no holder is live.
        let holder = |name: &str| Holder {
            node: node(name),
            boot: BootId::new("b").expect("valid"),
            disk: DiskId::new("d").expect("valid"),
            tier: Tier::Disk,
        };
        let shard = ShardRecord {
            rank: 0,
            root: Digest([0; 32]),
            size_bytes: 1,
            holders: vec![holder("n1"), holder("n2")],
            orders: vec![ShardOrder { task: ShardTask::Copy, node: node("n3") }],
            failed_copies: Vec::new(),
            copies_failed: 0,
        };
        let mut replicas = Replicas::default();
        replicas.count(&ClusterState::default(), &shard, 2);
        assert_eq!(replicas, Replicas { live: 0, away: 2, copying: 1, missing: 1 });
    }
}
