//! What an agent has, page by page.

use std::time::Duration;

use bytes::Bytes;
use outlast_blobs::objects::CommitRecord;
use outlast_control::state::{FoundNode, FoundSeal, Holder, LeftOut, Remains, SealSource, Tier};
use outlast_proto::FieldError;
use outlast_proto::convert::parse;
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{AttemptId, CheckpointSeq, Digest};

use super::seal::{found_seal, manifest};
use crate::peers::{Peers, call};

/// A page is some hundred small files on a disk that may be busy with training.
const PAGE_WITHIN: Duration = Duration::from_secs(30);
/// Of one agent; far more checkpoints than a disk has.
const PAGES_MAX: usize = 10_000;
/// An agent that answers, but not now: asked again so often …
const TRIES_MAX: u32 = 5;
/// … after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

pub(super) async fn find(address: &str, remains: &mut Remains) -> Result<(), Failure> {
    let peers = Peers::default();
    let mut request = pb::ListSealsRequest::default();
    for page in 0..PAGES_MAX {
        let answer = ask(&peers, address, &request).await?;
        let (last, more) = (answer.checkpoints.last().cloned(), answer.more);
        take(answer, page == 0, remains).map_err(|err| damaged(&err))?;
        match last.filter(|_| more) {
            Some(last) => {
                request.after_attempt = last.attempt;
                request.after_checkpoint = last.checkpoint;
            }
            None => return Ok(()),
        }
    }
    Err(Failure::Fatal { reason: format!("it has more than {PAGES_MAX} pages of checkpoints") })
}

async fn ask(
    peers: &Peers,
    address: &str,
    request: &pb::ListSealsRequest,
) -> Result<pb::ListSealsResponse, Failure> {
    let mut tries = 1;
    loop {
        let mut client = peers.agent(address)?;
        match call(PAGE_WITHIN, client.list_seals(request.clone())).await {
            Err(failure) if failure.is_retryable() && tries < TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            answered => return answered,
        }
    }
}

fn damaged(error: &FieldError) -> Failure {
    Failure::Fatal { reason: format!("its answer is damaged: {error}") }
}

fn take(answer: pb::ListSealsResponse, is_first: bool, remains: &mut Remains) -> Result<(), FieldError> {
    let pb::ListSealsResponse {
        node,
        boot_id,
        disk_id,
        address,
        cluster_id,
        predecessors,
        bundles,
        checkpoints,
        more: _,
    } = answer;
    let holder = Holder {
        node: parse("node", &node)?,
        boot: parse("boot_id", &boot_id)?,
        disk: parse("disk_id", &disk_id)?,
        tier: Tier::Disk,
    };
    if is_first {
        let digest =
            |bytes: Bytes| Digest::try_from(bytes.as_ref()).map_err(|err| FieldError::new("bundles", err));
        let cluster = (!cluster_id.is_empty()).then(|| parse("cluster_id", &cluster_id)).transpose()?;
        let predecessors = predecessors.iter().map(|name| parse("predecessors", name));
        remains.nodes.push(FoundNode {
            id: holder.node.clone(),
            boot: holder.boot.clone(),
            disk: holder.disk.clone(),
            address,
            cluster,
            predecessors: predecessors.collect::<Result<_, _>>()?,
            bundles: bundles.into_iter().map(digest).collect::<Result<_, _>>()?,
        });
    }
    for held in checkpoints {
        let attempt: AttemptId = parse("checkpoints.attempt", &held.attempt)?;
        let seq: CheckpointSeq = parse("checkpoints.checkpoint", &held.checkpoint)?;
        remains.numbers.insert((attempt, seq));
        if held.commit.is_empty() && held.damage.is_empty() {
            // Never sealed: nothing that a job may go on from.
            continue;
        }
        match seal(&held, &holder, (attempt, seq)) {
            Ok(seal) => remains.seals.push(seal),
            Err(reason) => {
                let reason = format!("at {}: {reason}", holder.node);
                let (job, checkpoint) = (Some(attempt.group.job), Some(seq));
                remains.damaged.push(LeftOut { job, checkpoint, reason });
            }
        }
    }
    Ok(())
}

fn seal(
    held: &pb::HeldCheckpoint,
    holder: &Holder,
    key: (AttemptId, CheckpointSeq),
) -> Result<FoundSeal, String> {
    if !held.damage.is_empty() {
        return Err(held.damage.clone());
    }
    let record = CommitRecord::decode(&held.commit).map_err(|err| format!("its seal: {err}"))?;
    let manifest = manifest(&record)?;
    if (manifest.attempt, manifest.seq) != key {
        return Err(format!("its seal is of {} {}", manifest.attempt, manifest.seq));
    }
    let source = SealSource::Node { holder: holder.clone(), ranks: held.ranks.clone() };
    found_seal(&record, &manifest, source)
}
