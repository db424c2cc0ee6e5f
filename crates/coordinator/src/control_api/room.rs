//! Whether the disks have room for all that a job will keep: said as soon as the first checkpoint shows its size, before a
//! save has to be skipped for want of it.

use std::collections::BTreeMap;

use outlast_control::state::{AttemptPhase, Checkpoint, ClusterState, Group, Job};
use outlast_proto::view::LeaderNotes;
use outlast_types::{ByteSize, Durability, NodeId};

/// What is missing, for each group that runs.
pub(super) fn shortages(state: &ClusterState, job: &Job, notes: &LeaderNotes) -> Vec<String> {
    job.groups.iter().filter_map(|group| shortage(state, job, group, notes)).collect()
}

/// The kept ones, and the next beside them: nothing goes before it is sealed and proven.
fn shortage(state: &ClusterState, job: &Job, group: &Group, notes: &LeaderNotes) -> Option<String> {
    let attempt = group.current().filter(|attempt| attempt.phase == AttemptPhase::Running)?;
    let sealed = job.sealed_of(group.id.index);
    let newest = sealed.first()?;
    let at_once = u64::from(job.spec.checkpoint.keep).saturating_add(1);
    // What is wanted of each node for the ranks that it runs, and what it has of that.
    let (mut wanted, mut missing) = (0u64, BTreeMap::<&NodeId, u64>::new());
    for seat in &attempt.assignments {
        let Some(shard) = newest.shards.iter().find(|shard| shard.rank == seat.rank) else { continue };
        let all = shard.size_bytes.saturating_mul(at_once);
        wanted = wanted.saturating_add(all);
        let rest = all.saturating_sub(held_at(&sealed, seat.rank, &seat.node));
        let of_node = missing.entry(&seat.node).or_default();
        *of_node = of_node.saturating_add(rest);
    }
    let free = |node: &NodeId| {
        let health = notes.health.get(node).filter(|health| health.disk_size_bytes > 0)?;
        Some(health.disk_free_bytes)
    };
    let kept = format!("{} kept checkpoints and the next one", job.spec.checkpoint.keep);
    let end = "saves will be skipped: free space, or lower checkpoint.keep";
    for (node, missing) in missing {
        if let Some(free) = free(node).filter(|free| *free < missing) {
            let (missing, free) = (ByteSize(missing), ByteSize(free));
            return Some(format!("its {kept} need {missing} more on {node}, where {free} are free; {end}"));
        }
    }
    let copies = if job.spec.checkpoint.durability == Some(Durability::Local) { 1 } else { 2 };
    let held: u64 = sealed.iter().map(|checkpoint| held_everywhere(checkpoint)).sum();
    let missing = wanted.saturating_mul(copies).saturating_sub(held);
    let everywhere: Option<u64> = state.nodes.keys().map(free).sum();
    everywhere.filter(|free| *free < missing).map(|free| {
        let (missing, free) = (ByteSize(missing), ByteSize(free));
        format!("its {kept} need {missing} more in copies, and all nodes together have {free} free; {end}")
    })
}

fn held_at(sealed: &[&Checkpoint], rank: u32, node: &NodeId) -> u64 {
    let shards = sealed.iter().flat_map(|checkpoint| &checkpoint.shards).filter(|shard| shard.rank == rank);
    let here = shards.filter(|shard| shard.holders.iter().any(|holder| holder.node == *node));
    here.map(|shard| shard.size_bytes).sum()
}

fn held_everywhere(checkpoint: &Checkpoint) -> u64 {
    checkpoint.shards.iter().map(|shard| shard.size_bytes * shard.holders.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use outlast_control::plan::NodeHealth;
    use outlast_control::state::decode_state;

    use super::*;

    #[test]
    fn what_a_job_keeps_is_compared_with_what_is_free_before_a_save_fails() {
        let mut state = decode_state(include_bytes!("../../../control/golden/state-v1.bin")).expect("golden");
        let job = state.jobs.values_mut().find(|job| !job.checkpoints.is_empty()).expect("one has saved");
        let attempt = job.groups[0].attempts.back_mut().expect("it was started");
        attempt.phase = AttemptPhase::Running;
        let free = |bytes: u64| {
            let health =
                NodeHealth { disk_free_bytes: bytes, disk_size_bytes: 1 << 40, ..NodeHealth::default() };
            let health = state.nodes.keys().map(|node| (node.clone(), health.clone())).collect();
            LeaderNotes { health, ..LeaderNotes::default() }
        };
        let all = |notes: &LeaderNotes| -> Vec<String> {
            state.jobs.values().flat_map(|job| shortages(&state, job, notes)).collect()
        };
        assert_eq!(all(&free(1 << 40)), Vec::<String>::new());
        let short = all(&free(0));
        let text = "its 1 kept checkpoints and the next one need 10B more on n1, where 0B are free; saves will be \
                    skipped: free space, or lower checkpoint.keep";
        assert_eq!(short, [text]);
        // Room for the own part of each, and not for the copies.
        let short = all(&free(10));
        assert!(short[0].contains("need 40B more in copies, and all nodes together have"), "{short:?}");
        assert_eq!(all(&LeaderNotes::default()), Vec::<String>::new(), "a disk that says nothing");
    }
}
