//! What becomes of checkpoints, told to the nodes that may have bytes of them.
//!
//! Who ran the attempt or holds a shard is told everything. That a checkpoint is over (aborted, quarantined, retired) is
//! told to everybody: a copy may have reached a node that the log does not know of, and the message is small.

use std::collections::BTreeSet;

use outlast_control::state::{Checkpoint, CheckpointState, ClusterState, Event, Job};
use outlast_proto::node::v1 as pb;
use outlast_proto::view::checkpoint_word;
use outlast_types::{AttemptId, CheckpointSeq, JobId, NodeId};

/// The receipts of checkpoints that are over, or whose records have left the state. The leader passes over them, and their
/// agents were told when it was decided; but one that was frozen then, or wrote the bytes later, never heard of it.
pub(super) fn over(state: &ClusterState, receipts: &[pb::Receipt]) -> BTreeSet<(JobId, CheckpointSeq)> {
    let parse = |receipt: &pb::Receipt| {
        let attempt: AttemptId = receipt.attempt.parse().ok()?;
        Some((attempt.group.job, receipt.checkpoint.parse().ok()?))
    };
    receipts.iter().filter_map(parse).filter(|(job, seq)| is_over(state, *job, *seq)).collect()
}

fn is_over(state: &ClusterState, job: JobId, seq: CheckpointSeq) -> bool {
    let checkpoint = state.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq));
    match checkpoint.map(|checkpoint| checkpoint.state) {
        Some(CheckpointState::Open | CheckpointState::Sealed) => false,
        Some(CheckpointState::Aborted | CheckpointState::Quarantined | CheckpointState::Retired) => true,
        None => is_gone(state, job, seq),
    }
}

/// Whether the checkpoint was known and is not any more. Its number was given out by this very state, so the state is
/// not merely behind one that knows it.
fn is_gone(state: &ClusterState, job: JobId, seq: CheckpointSeq) -> bool {
    match state.jobs.get(&job) {
        Some(job) => seq.0 < job.next_checkpoint && !job.checkpoints.contains_key(&seq),
        None => job.0 < state.next_job,
    }
}

/// The state of one checkpoint as this coordinator knows it.
pub(super) fn update(state: &ClusterState, job: JobId, seq: CheckpointSeq) -> pb::CheckpointUpdate {
    let record = state.jobs.get(&job);
    let checkpoint = record.and_then(|job| job.checkpoints.get(&seq));
    let seal = match (record, checkpoint) {
        (Some(job), Some(checkpoint)) if checkpoint.is_sealed() => seal_text(state, job, checkpoint),
        _ => String::new(),
    };
    pb::CheckpointUpdate {
        job: job.to_string(),
        checkpoint: seq.to_string(),
        state: match checkpoint {
            Some(checkpoint) => checkpoint_word(checkpoint.state),
            None if is_gone(state, job, seq) => "gone",
            None => "unknown",
        }
        .to_owned(),
        index: state.applied,
        seal,
    }
}

/// What an agent keeps beside the bytes, so that a cluster whose coordinators are all gone can be rebuilt.
fn seal_text(state: &ClusterState, job: &Job, checkpoint: &Checkpoint) -> String {
    let config = state.config.as_ref();
    let bundle = job.bundle.as_ref().map(|bundle| (bundle.digest, bundle.size_bytes));
    serde_json::json!({
        "format": 1,
        "cluster_id": config.map(|config| &config.cluster_id),
        "predecessors": config.map(|config| &config.predecessors),
        "profile": config.map(|config| config.profile),
        "job": job.id,
        "job_name": job.spec.name,
        "spec": job.spec,
        "bundle": bundle,
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
        // The seal is to lie beside the new copy too.
        Event::ShardCopied { job, seq, node: holder, .. } if holder == node => Some((*job, *seq)),
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

#[cfg(test)]
mod tests {
    use outlast_control::state::{Command, Envelope, Response};
    use outlast_types::{Actor, ClusterId, Profile, RequestId, WallTime, spec};

    use super::*;

    /// A cluster that had five jobs, of which one is left; it has given out no checkpoint number yet.
    fn state() -> ClusterState {
        let mut state = ClusterState::new();
        let mut index = 0;
        let mut apply = |request: Option<&str>, command| {
            index += 1;
            let request = request.map(|id| RequestId::new(id).expect("valid"));
            let envelope = Envelope {
                request,
                actor: Actor::System,
                source: None,
                cause: None,
                at: WallTime(1),
                command,
            };
            let (response, _) = state.apply(index, &envelope);
            assert!(!matches!(response, Response::Refused(_)), "{response:?}");
        };
        let cluster_id = ClusterId::new("test").expect("valid");
        apply(None, Command::InitCluster { cluster_id, profile: Profile::Lan, address: "a:1".to_owned() });
        let file = serde_json::json!({"name": "left", "command": ["true"]});
        let spec = Box::new(spec::parse(&file).expect("valid"));
        apply(Some("r-1"), Command::SubmitJob { spec, bundle: None });
        state.next_job = 6;
        state
    }

    #[test]
    fn a_receipt_ends_only_where_the_state_is_not_merely_behind() {
        let mut state = state();
        state.jobs.get_mut(&JobId(1)).expect("it is left").next_checkpoint = 4;
        for (attempt, checkpoint, expected) in [
            ("j1/0@1.1", "ck3", true),
            ("j1/0@1.1", "ck4", false),
            ("j5/0@1.1", "ck1", true),
            ("j6/0@1.1", "ck1", false),
            ("not an attempt", "ck1", false),
        ] {
            let receipt = pb::Receipt {
                attempt: attempt.to_owned(),
                checkpoint: checkpoint.to_owned(),
                ..pb::Receipt::default()
            };
            let found = over(&state, &[receipt]);
            assert_eq!(found.len(), usize::from(expected), "{attempt} {checkpoint}");
            for (job, seq) in found {
                assert_eq!(update(&state, job, seq).state, "gone");
            }
        }
        assert_eq!(update(&state, JobId(1), CheckpointSeq(4)).state, "unknown");
    }

    #[test]
    fn a_receipt_of_a_checkpoint_that_is_over_is_answered_and_one_that_is_open_is_not() {
        let mut state = state();
        let at = serde_json::to_value(WallTime(1)).expect("a time");
        let record = |word: &str| -> Checkpoint {
            let value = serde_json::json!({
                "seq": "ck3", "step": 1, "attempt": "j1/0@1.1", "world_size": 1, "state": word, "opened_at": at,
                "sealed_at": null, "shards": [], "manifest_root": null, "durability": null, "degraded": false,
                "proven": false, "pinned": false, "reason": null,
            });
            serde_json::from_value(value).expect("a checkpoint")
        };
        let receipt = pb::Receipt {
            attempt: "j1/0@1.1".to_owned(),
            checkpoint: "ck3".to_owned(),
            ..pb::Receipt::default()
        };
        let expected = [("open", 0), ("sealed", 0), ("aborted", 1), ("retired", 1), ("quarantined", 1)];
        for (word, count) in expected {
            let job = state.jobs.get_mut(&JobId(1)).expect("it is left");
            job.checkpoints.insert(CheckpointSeq(3), record(word));
            let found = over(&state, std::slice::from_ref(&receipt));
            assert_eq!(found.len(), count, "{word}");
        }
    }
}
