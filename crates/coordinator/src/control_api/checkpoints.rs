//! Checkpoints: list, show, verify at every holder, pin.

use std::time::Duration;

use futures::StreamExt as _;
use outlast_control::state::{Checkpoint, ClusterState, Command, Holder, Job, ShardRecord};
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::{GetShardRequest, ShardKey};
use outlast_proto::status::Failure;
use outlast_proto::view;
use outlast_types::CheckpointSeq;

use super::{ControlHandler, find_job, operator, rejected, request_id};
use crate::limits::WRITE_DEADLINE;
use crate::member::Member;
use crate::peers::call;
use crate::propose::envelope;

/// Holders that read at a time: each reads its own disk.
const VERIFIES_MAX: usize = 16;
/// Reading and hashing one shard; a larger one than fits is called unreachable, not corrupt.
const VERIFY_DEADLINE: Duration = Duration::from_secs(120);

fn find_checkpoint<'a>(
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

/// One copy to be read.
struct Copy {
    rank: u32,
    holder: Holder,
    /// Where to ask, or why nobody can be asked.
    address: Result<String, String>,
    key: ShardKey,
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

    pub(crate) async fn verify_checkpoint(
        &self,
        request: pb::GetCheckpointRequest,
    ) -> Result<pb::VerifyCheckpointResponse, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let (name, world_size, copies) = member.state(|state| {
            let (_, checkpoint) = find_checkpoint(state, &request.job, &request.checkpoint)?;
            if checkpoint.shards.is_empty() {
                let word = view::checkpoint_word(checkpoint.state);
                return Err(rejected(
                    format!("checkpoint {} is {word}: there is nothing to verify", checkpoint.seq),
                    "only sealed checkpoints have recorded bytes",
                ));
            }
            Ok((checkpoint.seq.to_string(), checkpoint.world_size, copies(state, checkpoint)))
        })?;
        let member = &member;
        let asked = copies.into_iter().map(|copy| async move { verify_copy(member, copy).await });
        let mut results: Vec<pb::VerifyResult> =
            futures::stream::iter(asked).buffer_unordered(VERIFIES_MAX).collect().await;
        results.sort_by(|a, b| (a.rank, &a.node).cmp(&(b.rank, &b.node)));
        let good = |rank: u32| results.iter().any(|result| result.rank == rank && result.outcome == "ok");
        Ok(pb::VerifyCheckpointResponse {
            checkpoint: name,
            restorable: (0..world_size).all(good),
            intact: results.iter().all(|result| result.outcome == "ok"),
            results,
        })
    }
}

fn copies(state: &ClusterState, checkpoint: &Checkpoint) -> Vec<Copy> {
    let of_shard = |shard: &ShardRecord| {
        let key = ShardKey {
            attempt: checkpoint.attempt.to_string(),
            checkpoint: checkpoint.seq.to_string(),
            rank: shard.rank,
            root: shard.root.0.to_vec().into(),
            size_bytes: shard.size_bytes,
        };
        let rank = shard.rank;
        let holders = shard.holders.clone();
        holders.into_iter().map(move |holder| (rank, holder, key.clone()))
    };
    checkpoint
        .shards
        .iter()
        .flat_map(of_shard)
        .map(|(rank, holder, key)| Copy { rank, address: address_of(state, &holder), holder, key })
        .collect()
}

fn address_of(state: &ClusterState, holder: &Holder) -> Result<String, String> {
    match state.nodes.get(&holder.node) {
        Some(node) if state.is_live_holder(holder) => Ok(node.address.clone()),
        Some(node) if node.disk != holder.disk => Err("the node has another disk now".to_owned()),
        Some(_) => Err("the node is lost".to_owned()),
        None => Err("the node is not known any more".to_owned()),
    }
}

async fn verify_copy(member: &Member, copy: Copy) -> pb::VerifyResult {
    let (outcome, detail) = match copy.address {
        Ok(address) => ask_holder(member, &address, copy.key).await,
        Err(why) => ("unreachable".to_owned(), why),
    };
    pb::VerifyResult { rank: copy.rank, node: copy.holder.node.to_string(), outcome, detail }
}

async fn ask_holder(member: &Member, address: &str, key: ShardKey) -> (String, String) {
    let request = GetShardRequest { cluster_id: member.cluster_id.to_string(), key: Some(key) };
    let answer = match member.peers.agent(address) {
        Ok(mut agent) => call(VERIFY_DEADLINE, agent.verify_shard(request)).await,
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(response) => (response.outcome, response.detail),
        Err(failure) => ("unreachable".to_owned(), failure.to_string()),
    }
}
