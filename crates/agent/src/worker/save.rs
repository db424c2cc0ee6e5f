//! Saving a rank's part of a checkpoint: open it in the log, pack the folder into a shard, and have it copied to peers.
//! A folder or a file here; from memory in `staged`.
//!
//! ```text
//!  OpenCheckpoint ──► staged ──► pack + hash + fsync ──► durable here ──► the worker goes on
//!   (refused: over)                (failed: dropped)          └──► copies to peers ──► receipt with all holders
//! ```
//! It goes on when the worker dies in the middle: what was handed over can still be sealed (salvage). A call that is
//! repeated, because its answer was lost, is answered with what the first one saved.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::pack::{self, PackLimits};
use outlast_blobs::{ShardKey, ShardMeta, ShardStore, ShardWriter, WriteError};
use outlast_control::plan::SaveCost;
use outlast_control::state::Holder;
use outlast_failpoint::{Failpoint, reach};
use outlast_process::boot_now;
use outlast_proto::node::v1 as node_pb;
use outlast_proto::status::Failure;
use outlast_types::{CheckpointSeq, Digest};
use tokio::sync::oneshot;

use super::handle::WorkerHandle;
use super::slots::SlotError;
use crate::assigned::{Peer, WorkerKey};
use crate::checkpoints::{Fate, Part};
use crate::context::{Context, blocking};
use crate::metrics::Phase;
use crate::peer::{client, drop_late};
use crate::transfer::chain;

/// An election and a busy log fit in, and so does the registration of a restarted agent, which is told to try again until then.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// Saves of one worker at a time: one being written, one being begun.
const SAVES_MAX: usize = 2;
/// Rounds over the peers while too few of them take a copy: about ten minutes, longer than a checkpoint stays open.
const ROUNDS_MAX: u32 = 60;
const ROUND_WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("{0} is not an absolute path of a folder or a file")]
    NotThere(PathBuf),
    #[error("{SAVES_MAX} checkpoints of this worker are being written already")]
    Busy,
    #[error("step {step} is skipped: earlier checkpoints are still being written")]
    Skipped { step: u64 },
    #[error("the checkpoint could not be opened")]
    Open(#[source] Failure),
    #[error("the log's answer names no checkpoint: {0}")]
    Answer(#[from] outlast_proto::FieldError),
    #[error("the bytes could not be written as a shard: {0}")]
    Write(String),
    #[error("the disk is full: {0}")]
    Full(String),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the slot's header is refused: {0}")]
    Header(String),
    #[error("no save of step {step} was begun here, or it is long over")]
    NotBegun { step: u64 },
    #[error("the agent stops")]
    Stopping,
}

impl From<SaveError> for Failure {
    fn from(error: SaveError) -> Self {
        let reason = error.to_string();
        let hint = "training goes on; the next save may succeed".to_owned();
        match error {
            SaveError::Open(failure) => failure,
            SaveError::NotThere(_) => Failure::Rejected { reason, hint: "give the absolute path".to_owned() },
            // Not worth a wait: training goes on without this one.
            SaveError::Full(_) => Failure::Rejected {
                reason,
                hint: "make room on the node's disk; training goes on, the next save may succeed".to_owned(),
            },
            // No time to wait is named: by the time there is room, the step is long past.
            SaveError::Slot(SlotError::NoRoom { .. } | SlotError::Io { .. }) => Failure::Exhausted {
                reason,
                hint: "give the node more memory, or save a folder; training goes on".to_owned(),
                retry_after_ms: 0,
            },
            SaveError::Slot(SlotError::TooLarge { .. }) => Failure::Rejected {
                reason,
                hint: "raise resources.memory, or save a folder; training goes on".to_owned(),
            },
            SaveError::Header(_) | SaveError::NotBegun { .. } => Failure::Rejected { reason, hint },
            SaveError::Skipped { .. } => Failure::Conflict { reason, hint },
            SaveError::Busy => Failure::Exhausted { reason, hint, retry_after_ms: 500 },
            SaveError::Write(_) => Failure::Exhausted { reason, hint, retry_after_ms: 1_000 },
            SaveError::Answer(_) => Failure::Fatal { reason },
            SaveError::Stopping => Failure::Unavailable { reason, hint, retry_after_ms: 500 },
        }
    }
}

/// What a worker asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) step: u64,
    /// Waits for its turn instead of being skipped.
    pub(crate) in_turn: bool,
}

/// Durable on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    pub(crate) seq: CheckpointSeq,
    pub(crate) root: Digest,
    pub(crate) size_bytes: u64,
}

/// Answers when every byte is durable here; the copies follow.
pub(crate) async fn save(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    what: Wanted,
    path: PathBuf,
) -> Result<Saved, SaveError> {
    let step = what.step;
    if !path.is_absolute() || !(path.is_dir() || path.is_file()) {
        return Err(SaveError::NotThere(path));
    }
    if handle.saves.len() >= SAVES_MAX {
        return Err(SaveError::Busy);
    }
    let fulfils = handle.save_begun(step, boot_now());
    let (reply, answer) = oneshot::channel();
    let (context, handle2) = (Arc::clone(context), Arc::clone(handle));
    // On its own, because a dead worker's call is dropped in the middle.
    handle.saves.spawn(async move {
        let saved = open_and_write(&context, &handle2, what, path).await;
        match &saved {
            Ok(saved) => handle2.save_done(step, *saved, fulfils),
            Err(err) => {
                let key = handle2.key;
                handle2.save_failed(fulfils);
                tracing::warn!(attempt = %key.attempt, rank = key.rank, step, error = %err, "checkpoint not saved");
            }
        }
        let _ = reply.send(saved);
    });
    answer.await.unwrap_or(Err(SaveError::Stopping))
}

async fn open_and_write(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    what: Wanted,
    path: PathBuf,
) -> Result<Saved, SaveError> {
    let step = what.step;
    let _turn = handle.save_turn.lock().await;
    let key = handle.key;
    let is_over = |saved: &Saved| {
        matches!(context.checkpoints.fate(key.attempt.group.job, saved.seq), Some(Fate::Over(_)))
    };
    if let Some(saved) = handle.saved_at(step).filter(|saved| !is_over(saved)) {
        return Ok(saved);
    }
    let seq = match open(context, handle, what).await? {
        Opened::Anew(seq) => seq,
        Opened::Before(saved) => return Ok(saved),
    };
    let part = Part { attempt: key.attempt, seq, rank: key.rank };
    context.checkpoints.staged(part);
    let shard = ShardKey { job: key.attempt.group.job, attempt: key.attempt, seq, rank: key.rank };
    let store = context.shards.clone();
    let began = boot_now();
    let late = Arc::clone(context);
    let written = blocking(move || write(&store, &shard, &path).and_then(|meta| in_time(&late, meta))).await;
    // The worker waits until its folder is written.
    let write_ms = boot_now().since(began);
    *handle.save_cost.lock() = Some(SaveCost { stall_ms: write_ms, write_ms });
    let meta = written.inspect_err(|err| context.checkpoints.failed(part, err.to_string()))?;
    context.metrics.checkpoint_took(Phase::Write, write_ms);
    context.metrics.checkpoint_bytes.inc_by(meta.size_bytes);
    announce_and_copy(context, handle, meta.clone());
    Ok(Saved { seq, root: meta.root, size_bytes: meta.size_bytes })
}

/// What the log says to a step.
#[derive(Debug)]
pub(crate) enum Opened {
    Anew(CheckpointSeq),
    /// An earlier agent of this node saved it, and its answer was lost.
    Before(Saved),
}

/// Has the step's checkpoint opened in the log, or finds the open one.
///
/// # Errors
/// `Skipped`, by all ranks alike, or why it may not be: `Fenced` for an attempt that is over, without another try.
pub(super) async fn open(
    context: &Arc<Context>,
    handle: &WorkerHandle,
    what: Wanted,
) -> Result<Opened, SaveError> {
    let (key, step) = (handle.key, what.step);
    let request = || node_pb::OpenCheckpointRequest {
        node: context.node.to_string(),
        registration: context.registration().0,
        attempt: key.attempt.to_string(),
        step,
        cluster_id: context.cluster_text(),
        in_turn: what.in_turn,
    };
    let failed = |err: io::Error| SaveError::Write(err.to_string());
    reach(Failpoint::AgentOpenBeforePropose).await.map_err(failed)?;
    let opening = context.coordinators.open_checkpoint(request, OPEN_WITHIN);
    let opened = context.shutdown.run_until_cancelled(opening).await.ok_or(SaveError::Stopping)?;
    reach(Failpoint::AgentOpenAfterAnswer).await.map_err(failed)?;
    match opened {
        Err(failure @ Failure::Conflict { .. }) => {
            let store = context.shards.clone();
            let found = blocking(move || find_sealed(&store, &key, step)).await;
            found.map(Opened::Before).ok_or(SaveError::Open(failure))
        }
        opened => {
            let opened = opened.map_err(SaveError::Open)?.ok_or(SaveError::Skipped { step })?;
            Ok(Opened::Anew(outlast_proto::convert::parse("checkpoint", &opened)?))
        }
    }
}

fn write(store: &ShardStore, shard: &ShardKey, path: &Path) -> Result<ShardMeta, SaveError> {
    let mut writer = store.begin(None).map_err(refused)?;
    pack(path, &mut writer).map_err(|err| {
        let is_full = matches!(&err, pack::PackError::Io { source, .. } if is_full(source));
        if is_full { SaveError::Full(chain(&err)) } else { SaveError::Write(chain(&err)) }
    })?;
    writer.finish(shard).map_err(refused)
}

/// Written, and still wanted. Blocks on the disk.
pub(super) fn in_time(context: &Context, meta: ShardMeta) -> Result<ShardMeta, SaveError> {
    drop_late(context, &meta).map_or(Ok(meta), |why| Err(SaveError::Write(why)))
}

/// A folder with all in it; or one file, which is restored as a folder that holds it.
fn pack(path: &Path, out: &mut ShardWriter) -> Result<(), pack::PackError> {
    let limits = PackLimits::CHECKPOINT;
    match (path.is_file(), path.parent(), path.file_name()) {
        (true, Some(dir), Some(name)) => pack::pack_files(dir, vec![name.into()], out, limits)?,
        _ => pack::pack_dir(path, out, limits)?,
    };
    Ok(())
}

pub(super) fn refused(err: WriteError) -> SaveError {
    match err {
        WriteError::Full { .. } => SaveError::Full(chain(&err)),
        _ => SaveError::Write(chain(&err)),
    }
}

fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// This rank's part of the sealed checkpoint of a step, by the seal beside it. Blocks on the disk.
fn find_sealed(store: &ShardStore, key: &WorkerKey, step: u64) -> Option<Saved> {
    let own = |meta: &ShardMeta| meta.sealed && (meta.key.attempt, meta.key.rank) == (key.attempt, key.rank);
    let of_step = |meta: &ShardMeta| {
        let seal = store.seal_of(&meta.key, meta.root);
        seal.is_ok_and(|seal| seal.record["checkpoint"]["step"].as_u64() == Some(step))
    };
    let found = store.list().into_iter().find(|meta| own(meta) && of_step(meta))?;
    Some(Saved { seq: found.key.seq, root: found.root, size_bytes: found.size_bytes })
}

/// Says that the shard is durable here, and has it copied until there are holders enough or the log has decided.
pub(crate) fn announce_and_copy(context: &Arc<Context>, handle: &Arc<WorkerHandle>, meta: ShardMeta) {
    let part = Part { attempt: meta.key.attempt, seq: meta.key.seq, rank: meta.key.rank };
    let is_alone = replicas(handle) <= 1;
    context.checkpoints.held(part, meta.root, meta.size_bytes, vec![context.holder()], is_alone);
    if is_alone {
        return;
    }
    let (context2, handle) = (Arc::clone(context), Arc::clone(handle));
    let stop = context.shutdown.clone();
    let work = async move { copy(&context2, &handle, part, &meta).await };
    context.tasks.spawn(async move { stop.run_until_cancelled(work).await });
}

fn replicas(handle: &WorkerHandle) -> usize {
    handle.assigned.borrow().replicas as usize
}

async fn copy(context: &Arc<Context>, handle: &WorkerHandle, part: Part, meta: &ShardMeta) {
    let mut holders = vec![context.holder()];
    let began = boot_now();
    for round in 0..ROUNDS_MAX {
        let peers = handle.assigned.borrow().replica_peers.clone();
        for peer in peers {
            if holders.len() >= replicas(handle) || !context.checkpoints.is_pending(&part) {
                break;
            }
            if holders.iter().any(|holder| holder.node.as_str() == peer.node) {
                continue;
            }
            match put(context, &peer, meta).await {
                Ok(holder) => holders.push(holder),
                Err(err) => {
                    tracing::warn!(attempt = %part.attempt, rank = part.rank, checkpoint = %part.seq, peer = %peer.node, error = %err, "no copy on this peer");
                }
            }
        }
        let enough = holders.len() >= replicas(handle);
        context.checkpoints.held(part, meta.root, meta.size_bytes, holders.clone(), !enough);
        if enough {
            context.metrics.checkpoint_took(Phase::Replicate, boot_now().since(began));
        }
        if enough || !context.checkpoints.is_pending(&part) {
            return;
        }
        tokio::time::sleep((Duration::from_millis(500) * 2u32.saturating_pow(round)).min(ROUND_WAIT_MAX))
            .await;
    }
}

async fn put(context: &Arc<Context>, peer: &Peer, meta: &ShardMeta) -> Result<Holder, Failure> {
    let failed = |err: io::Error| Failure::Fatal { reason: err.to_string() };
    reach(Failpoint::AgentReplicateSend).await.map_err(failed)?;
    let holder = client::put_shard(context, peer, meta).await?;
    reach(Failpoint::AgentReplicateSent).await.map_err(failed)?;
    Ok(holder)
}
