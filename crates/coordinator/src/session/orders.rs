//! What a node should do with shards of sealed checkpoints, computed from the applied state alone.

use outlast_control::state::{Checkpoint, ClusterState, ShardRecord, ShardTask};
use outlast_proto::node::v1 as pb;
use outlast_types::NodeId;

use super::desired::{bundle_source, peer};

/// Orders of one message; the others follow as these are carried out.
const ORDERS_MAX: usize = 64;

pub(super) fn desired_orders(state: &ClusterState, node: &NodeId) -> Vec<pb::ShardOrder> {
    let mut orders: Vec<_> = state.orders_of(node).collect();
    // Copies before proofs, proofs before the object store: an outage there must hold up nothing else.
    orders.sort_by_key(|(task, ..)| *task);
    orders.truncate(ORDERS_MAX);
    orders.into_iter().map(|(task, checkpoint, shard)| order(state, task, checkpoint, shard)).collect()
}

fn order(
    state: &ClusterState,
    task: ShardTask,
    checkpoint: &Checkpoint,
    shard: &ShardRecord,
) -> pb::ShardOrder {
    let holders = state.live_holders(&shard.holders).filter_map(|holder| state.nodes.get(&holder.node));
    pb::ShardOrder {
        task: task.as_str().to_owned(),
        attempt: checkpoint.attempt.to_string(),
        checkpoint: checkpoint.seq.to_string(),
        rank: shard.rank,
        root: shard.root.0.to_vec(),
        size_bytes: shard.size_bytes,
        stored: checkpoint.stored_at.is_some(),
        holders: if task == ShardTask::Copy { holders.map(peer).collect() } else { Vec::new() },
        bundle: if task == ShardTask::Store { bundle(state, checkpoint) } else { None },
    }
}

fn bundle(state: &ClusterState, checkpoint: &Checkpoint) -> Option<pb::Bundle> {
    let job = state.jobs.get(&checkpoint.attempt.group.job)?;
    job.bundle.as_ref().map(|bundle| bundle_source(state, bundle))
}
