//! What becomes of checkpoints, told to the nodes that may have bytes of them.
//!
//! Who ran the attempt or holds a shard is told everything. That a checkpoint is over (aborted, quarantined, retired) is
//! told to everybody: a copy may have reached a node that the log does not know of, and the message is small.

use std::collections::BTreeSet;

use outlast_control::state::{Checkpoint, ClusterState, Event};
use outlast_proto::node::v1 as pb;
use outlast_proto::view::checkpoint_word;
use outlast_types::{CheckpointSeq, JobId, NodeId};

/// The state of one checkpoint as this coordinator knows it.
pub(super) fn update(state: &ClusterState, job: JobId, seq: CheckpointSeq) -> pb::CheckpointUpdate {
    let record = state.jobs.get(&job);
    let checkpoint = record.and_then(|job| job.checkpoints.get(&seq));
    let seal = match (record, checkpoint) {
        (Some(job), Some(checkpoint)) if checkpoint.is_sealed() => {
            seal_text(state, &job.spec.name, job.id, checkpoint)
        }
        _ => String::new(),
    };
    pb::CheckpointUpdate {
        job: job.to_string(),
        checkpoint: seq.to_string(),
        state: checkpoint.map_or("unknown", |checkpoint| checkpoint_word(checkpoint.state)).to_owned(),
        index: state.applied,
        seal,
    }
}

/// What an agent keeps beside the bytes, so that a cluster whose coordinators are all gone can be rebuilt.
fn seal_text(state: &ClusterState, job_name: &str, job: JobId, checkpoint: &Checkpoint) -> String {
    let cluster = state.config.as_ref().map(|config| config.cluster_id.as_str());
    serde_json::json!({
        "format": 1,
        "cluster_id": cluster,
        "job": job,
        "job_name": job_name,
        "index": state.applied,
        "checkpoint": checkpoint,
    })
    .to_string()
}

/// The checkpoint that an event is about, where the node should hear of it.
pub(super) fn concerned(
    state: &ClusterState,
    node: &NodeId,
    held_jobs: &BTreeSet<JobId>,
    event: &Event,
) -> Option<(JobId, CheckpointSeq)> {
    match event {
        Event::CheckpointAborted { job, seq, .. }
        | Event::CheckpointQuarantined { job, seq, .. }
        | Event::CheckpointRetired { job, seq } => Some((*job, *seq)),
        Event::CheckpointSealed { job, seq, .. } => {
            let has_part = held_jobs.contains(job) || took_part(state, node, *job, *seq);
            has_part.then_some((*job, *seq))
        }
        _ => None,
    }
}

fn took_part(state: &ClusterState, node: &NodeId, job: JobId, seq: CheckpointSeq) -> bool {
    let Some(checkpoint) = state.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq)) else {
        return false;
    };
    let holds = checkpoint.shards.iter().flat_map(|shard| &shard.holders).any(|holder| holder.node == *node);
    holds || state.attempt(&checkpoint.attempt).is_some_and(|a| a.assignments.iter().any(|a| a.node == *node))
}
