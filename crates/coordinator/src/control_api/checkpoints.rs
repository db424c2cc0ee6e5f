//! Checkpoints: list, show, pin.

use outlast_control::state::{
    Checkpoint, ClusterState, Command, Holder, Job, Node, NodeCondition, ShardRecord,
};
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::ShardKey;
use outlast_proto::status::Failure;
use outlast_proto::view;
use outlast_types::CheckpointSeq;

use super::{ControlHandler, find_job, operator, rejected, request_id};
use crate::limits::WRITE_DEADLINE;
use crate::propose::envelope;

/// Nodes that are asked to read the object store, one after the other.
const STORE_READERS_MAX: usize = 3;

pub(super) fn find_checkpoint<'a>(
    state: &'a ClusterState,
    job: &str,
    checkpoint: &str,
) -> Result<(&'a Job, &'a Checkpoint), Failure> {
    let job = find_job(state, job)?;
    let seq: CheckpointSeq =
        checkpoint.parse().map_err(|error| rejected(error, "`outlast checkpoint list JOB`"))?;
    let found = job.checkpoints.get(&seq).ok_or_else(|| Failure::NotFound {
        what: format!("checkpoint {seq} of job {}", job.spec.name),
        hint: format!("`outlast checkpoint list {}` shows them", job.spec.name),
    })?;
    Ok((job, found))
}

/// A shard as agents know it.
pub(super) fn shard_key(checkpoint: &Checkpoint, shard: &ShardRecord) -> ShardKey {
    ShardKey {
        attempt: checkpoint.attempt.to_string(),
        checkpoint: checkpoint.seq.to_string(),
        rank: shard.rank,
        root: shard.root.0.to_vec().into(),
        size_bytes: shard.size_bytes,
    }
}

/// Where to ask a holder, or why it cannot be asked.
pub(super) fn address_of(state: &ClusterState, holder: &Holder) -> Result<String, String> {
    match state.nodes.get(&holder.node) {
        Some(node) if state.is_live_holder(holder) => Ok(node.address.clone()),
        Some(node) if node.disk != holder.disk => Err("the node has another disk now".to_owned()),
        Some(_) => Err("the node is lost".to_owned()),
        None => Err("the node is not known any more".to_owned()),
    }
}

/// Where the checkpoint's bytes in the object store can be asked for: at the addresses of some nodes that reach it. Empty
/// for one that is not stored.
pub(super) fn store_readers(
    state: &ClusterState,
    checkpoint: &Checkpoint,
) -> Vec<(String, Result<String, String>)> {
    if checkpoint.stored_at.is_none() {
        return Vec::new();
    }
    let reads = |node: &&Node| node.condition == NodeCondition::Registered && node.features.object_store;
    let readers = state.nodes.values().filter(reads).take(STORE_READERS_MAX);
    let named = |node: &Node| (format!("the object store, through {}", node.id), Ok(node.address.clone()));
    let mut readers: Vec<_> = readers.map(named).collect();
    if readers.is_empty() {
        let why = "no node that is here was started with --store".to_owned();
        readers.push(("the object store".to_owned(), Err(why)));
    }
    readers
}

/// Refuses checkpoints without recorded bytes.
pub(super) fn check_has_bytes(checkpoint: &Checkpoint) -> Result<(), Failure> {
    if !checkpoint.shards.is_empty() {
        return Ok(());
    }
    let word = view::checkpoint_word(checkpoint.state);
    Err(rejected(
        format!("checkpoint {} is {word}: there are no bytes to read", checkpoint.seq),
        "only sealed checkpoints have recorded bytes",
    ))
}

impl ControlHandler {
    pub(crate) async fn list_checkpoints(&self, job: &str) -> Result<pb::ListCheckpointsResponse, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        member.state(|state| {
            let job = find_job(state, job)?;
            let checkpoints =
                job.checkpoints.values().map(|checkpoint| view::checkpoint_view(state, checkpoint));
            Ok(pb::ListCheckpointsResponse { job_id: job.id.to_string(), checkpoints: checkpoints.collect() })
        })
    }

    pub(crate) async fn get_checkpoint(
        &self,
        request: pb::GetCheckpointRequest,
    ) -> Result<pb::Checkpoint, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        member.state(|state| {
            let (_, checkpoint) = find_checkpoint(state, &request.job, &request.checkpoint)?;
            Ok(view::checkpoint_view(state, checkpoint))
        })
    }

    pub(crate) async fn pin_checkpoint(
        &self,
        request: pb::PinCheckpointRequest,
        source: Option<String>,
    ) -> Result<pb::Checkpoint, Failure> {
        let member = self.seat.member()?;
        let id = request_id(&request.request_id)?;
        member.confirm_read().await?;
        let (job, seq) = member.state(|state| {
            find_checkpoint(state, &request.job, &request.checkpoint).map(|(job, found)| (job.id, found.seq))
        })?;
        let command = Command::PinCheckpoint { job, seq, pinned: request.pinned };
        member.change(envelope(operator(&request.actor), source, Some(id), command), WRITE_DEADLINE).await?;
        member.state(|state| {
            let (_, checkpoint) = find_checkpoint(state, &job.to_string(), &seq.to_string())?;
            Ok(view::checkpoint_view(state, checkpoint))
        })
    }
}
