//! Whether the recorded copies of a checkpoint are there: every holder is asked for its own. For ranks that have no good one
//! the object store is asked, through a node that reaches it.

use std::time::Duration;

use futures::StreamExt as _;
use outlast_control::state::{Checkpoint, ClusterState, Holder, ShardRecord};
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::{GetShardRequest, ShardKey};
use outlast_proto::status::Failure;

use super::ControlHandler;
use super::checkpoints::{address_of, check_has_bytes, find_checkpoint, shard_key, store_readers};
use crate::member::Member;
use crate::peers::call;

/// Holders that read at a time: each reads its own disk.
const VERIFIES_MAX: usize = 16;
/// Of the object store: all through one node, as a rule.
const STORED_MAX: usize = 4;
/// What a holder gets beside the time for its bytes.
const VERIFY_GRACE: Duration = Duration::from_secs(30);
/// Bytes a second at the least: half of what a slow disk reads. A larger shard than fits is called unreachable, not
/// corrupt.
const VERIFY_RATE_MIN: u64 = 50 << 20;

/// One copy to be asked for.
struct Copy {
    rank: u32,
    holder: Holder,
    /// Where to ask, or why nobody can be asked.
    address: Result<String, String>,
    key: ShardKey,
}

impl ControlHandler {
    pub(crate) async fn verify_checkpoint(
        &self,
        request: pb::VerifyCheckpointRequest,
    ) -> Result<pb::VerifyCheckpointResponse, Failure> {
        let pb::VerifyCheckpointRequest { job, checkpoint, deep, ranks } = request;
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let is_wanted = |rank: u32| ranks.is_empty() || ranks.contains(&rank);
        let (name, wanted, copies, stored) = member.state(|state| {
            let (_, checkpoint) = find_checkpoint(state, &job, &checkpoint)?;
            check_has_bytes(checkpoint)?;
            let wanted: Vec<u32> = (0..checkpoint.world_size).filter(|rank| is_wanted(*rank)).collect();
            let stored = stored(state, checkpoint, is_wanted);
            let copies = copies(state, checkpoint, is_wanted);
            Ok::<_, Failure>((checkpoint.seq.to_string(), wanted, copies, stored))
        })?;
        let member = &member;
        let asked = copies.into_iter().map(|copy| async move { verify_copy(member, copy, deep).await });
        let mut results: Vec<pb::VerifyResult> =
            futures::stream::iter(asked).buffer_unordered(VERIFIES_MAX).collect().await;
        let has_good = |rank: u32| results.iter().any(|result| result.rank == rank && result.outcome == "ok");
        let asked = stored.into_iter().filter(|stored| !has_good(stored.rank));
        let asked: Vec<_> = asked.map(|stored| verify_stored(member, stored, deep)).collect();
        let in_store: Vec<_> = futures::stream::iter(asked).buffer_unordered(STORED_MAX).collect().await;
        results.extend(in_store);
        results.sort_by(|a, b| (a.rank, &a.node).cmp(&(b.rank, &b.node)));
        let good = |rank: u32| results.iter().any(|result| result.rank == rank && result.outcome == "ok");
        Ok(pb::VerifyCheckpointResponse {
            checkpoint: name,
            restorable: wanted.into_iter().all(good),
            intact: results.iter().all(|result| result.outcome == "ok"),
            results,
        })
    }
}

fn copies(state: &ClusterState, checkpoint: &Checkpoint, is_wanted: impl Fn(u32) -> bool) -> Vec<Copy> {
    let of_shard = |shard: &ShardRecord| {
        let key = shard_key(checkpoint, shard);
        let rank = shard.rank;
        let copy = move |holder: Holder| Copy {
            rank,
            address: address_of(state, &holder),
            holder,
            key: key.clone(),
        };
        shard.holders.clone().into_iter().map(copy)
    };
    checkpoint.shards.iter().filter(|shard| is_wanted(shard.rank)).flat_map(of_shard).collect()
}

/// A rank's bytes in the object store, with the nodes through which they can be read.
struct Stored {
    rank: u32,
    key: ShardKey,
    readers: Vec<(String, Result<String, String>)>,
}

fn stored(state: &ClusterState, checkpoint: &Checkpoint, is_wanted: impl Fn(u32) -> bool) -> Vec<Stored> {
    let readers = store_readers(state, checkpoint);
    let shards = checkpoint.shards.iter().filter(|shard| !readers.is_empty() && is_wanted(shard.rank));
    let of_shard = |shard: &ShardRecord| Stored {
        rank: shard.rank,
        key: shard_key(checkpoint, shard),
        readers: readers.clone(),
    };
    shards.map(of_shard).collect()
}

/// The first that reaches the store has the word.
async fn verify_stored(member: &Member, stored: Stored, deep: bool) -> pb::VerifyResult {
    let Stored { rank, key, readers } = stored;
    let mut said = (String::new(), "unreachable".to_owned(), String::new());
    for (node, address) in readers {
        let (outcome, detail) = match address {
            Ok(address) => ask(member, &address, key.clone(), deep, true).await,
            Err(why) => ("unreachable".to_owned(), why),
        };
        let is_answer = outcome != "unreachable";
        said = (node, outcome, detail);
        if is_answer {
            break;
        }
    }
    let (node, outcome, detail) = said;
    pb::VerifyResult { rank, node, outcome, detail, repair: String::new() }
}

async fn verify_copy(member: &Member, copy: Copy, deep: bool) -> pb::VerifyResult {
    let (outcome, detail) = match copy.address {
        Ok(address) => ask(member, &address, copy.key, deep, false).await,
        Err(why) => ("unreachable".to_owned(), why),
    };
    let (rank, node) = (copy.rank, copy.holder.node.to_string());
    pb::VerifyResult { rank, node, outcome, detail, repair: String::new() }
}

async fn ask(member: &Member, address: &str, key: ShardKey, deep: bool, stored: bool) -> (String, String) {
    let within = VERIFY_GRACE + Duration::from_secs(key.size_bytes / VERIFY_RATE_MIN);
    let cluster_id = member.cluster_id.to_string();
    let request = GetShardRequest { cluster_id, key: Some(key), look_only: !deep, lane: None };
    let answer = match member.peers.agent(address) {
        Ok(mut agent) if stored => call(within, agent.verify_stored_shard(request)).await,
        Ok(mut agent) => call(within, agent.verify_shard(request)).await,
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(response) => (response.outcome, response.detail),
        Err(failure) => ("unreachable".to_owned(), failure.to_string()),
    }
}
