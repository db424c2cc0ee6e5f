//! Saving from a slot of shared memory: the worker copies, the agent does all the rest, whether the worker lives or not.
//!
//! ```text
//!  begin ─► slot handed out ─┬─► OpenCheckpoint (skipped, refused: slot freed once the worker is done with it)
//!     (none free: the log     └─► worker copies ─► STAGED ─► receipt "staged" ─► write + hash + fsync ─► slot free
//!      decides first)               (dies before: dropped, given up)   (worker dies: goes on, salvage)
//! ```

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::ShardKey;
use outlast_control::plan::SaveCost;
use outlast_failpoint::{Failpoint, reach};
use outlast_process::boot_now;
use outlast_proto::status::Failure;
use outlast_staging::{Note, SlotState};
use outlast_types::{BootTime, CheckpointSeq};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::handle::WorkerHandle;
use super::save::{Opened, SaveError, Saved, Wanted, announce_and_copy, in_time, open, refused};
use super::slot_write::write_patiently;
use super::slots::{Claim, Phase, Slot, Slots};
use crate::checkpoints::{Fate, Part};
use crate::context::{Context, blocking};
use crate::metrics;

/// For a slot while both hold bytes that are being written: 100 GiB at 200 MB/s take 9 minutes. And for a log that does not
/// answer.
const SLOT_WITHIN: Duration = Duration::from_secs(600);

/// What `begin` answers.
#[derive(Debug)]
pub(crate) enum Begun {
    Slot(Slot),
    /// A repeated call: the bytes of this step are here already.
    Kept,
}

/// What became of a staged save.
#[derive(Clone, Debug)]
pub(crate) enum Settled {
    Saved(Saved),
    Skipped,
    Failed(Failure),
}

/// Hands out a slot for a step, and has its checkpoint opened meanwhile.
pub(crate) async fn begin(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    what: Wanted,
    size_bytes: u64,
) -> Result<Begun, SaveError> {
    let (reply, answer) = oneshot::channel();
    let (context, handle2) = (Arc::clone(context), Arc::clone(handle));
    // On its own, because a call that is dropped in the middle must not leave a slot to nobody.
    handle.saves.spawn(async move {
        let begun = begin_in_turn(&context, &handle2, what, size_bytes).await;
        if let Err(err) = &begun {
            let key = handle2.key;
            tracing::warn!(attempt = %key.attempt, rank = key.rank, step = what.step, error = %err, "checkpoint not begun");
        }
        let _ = reply.send(begun);
    });
    answer.await.unwrap_or(Err(SaveError::Stopping))
}

async fn begin_in_turn(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    what: Wanted,
    size_bytes: u64,
) -> Result<Begun, SaveError> {
    let _turn = handle.begin_turn.lock().await;
    if let Some(claim) = handle.slots.of_step(what.step) {
        if *claim.phase.borrow() == Phase::Handed {
            return hand_out(handle, &claim, size_bytes).await.map(Begun::Slot);
        }
        return Ok(Begun::Kept);
    }
    let is_over = |saved: &Saved| {
        matches!(context.checkpoints.fate(handle.key.attempt.group.job, saved.seq), Some(Fate::Over(_)))
    };
    if handle.saved_at(what.step).is_some_and(|saved| !is_over(&saved)) {
        return Ok(Begun::Kept);
    }
    for abandoned in handle.slots.handed() {
        drop_claim(&abandoned, "a later save was begun");
    }
    let fulfils = handle.save_begun(what.step, boot_now());
    handle.forget_settled(what.step);
    let given = claim(context, handle, what).await;
    let (claim, seq) = given.inspect_err(|_| handle.save_failed(fulfils))?;
    let save = Save { context: Arc::clone(context), handle: Arc::clone(handle), claim, what, fulfils };
    let handed = hand_out(handle, &save.claim, size_bytes).await;
    let file = match &handed {
        Ok(slot) => Some(Arc::clone(&slot.file)),
        Err(err) => {
            // The other ranks save this step: they are told that one part will not come, instead of waiting for it.
            drop_claim(&save.claim, &err.to_string());
            None
        }
    };
    handle.saves.spawn(save.run(file, seq));
    handed.map(Begun::Slot)
}

/// A free slot; where there is none, the log says first whether this step is saved at all, by all ranks alike.
async fn claim(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    what: Wanted,
) -> Result<(Claim, Option<CheckpointSeq>), SaveError> {
    if let Some(claim) = handle.slots.claim(what.step) {
        return Ok((claim, None));
    }
    let mut freed = handle.slots.freed();
    let seq = match open(context, handle, what).await? {
        Opened::Anew(seq) => seq,
        Opened::Before(saved) => saved.seq,
    };
    let until = Instant::now() + SLOT_WITHIN;
    loop {
        freed.mark_unchanged();
        if let Some(claim) = handle.slots.claim(what.step) {
            return Ok((claim, Some(seq)));
        }
        let change = tokio::time::timeout_at(until, freed.changed());
        let change = context.shutdown.run_until_cancelled(change).await.ok_or(SaveError::Stopping)?;
        if change.is_err() {
            context.checkpoints.failed(part(handle, seq), SaveError::Busy.to_string());
            return Err(SaveError::Busy);
        }
    }
}

async fn hand_out(handle: &Arc<WorkerHandle>, claim: &Claim, size_bytes: u64) -> Result<Slot, SaveError> {
    let (handle, claim) = (Arc::clone(handle), claim.clone());
    blocking(move || handle.slots.hand_out(&claim, size_bytes)).await.map_err(SaveError::Slot)
}

/// Takes over what the worker says is staged.
pub(crate) async fn take(
    handle: &Arc<WorkerHandle>,
    step: u64,
    index: u32,
    stall_us: u64,
    failed: String,
) -> Result<(), SaveError> {
    let claim = handle.slots.of_step(step).filter(|claim| claim.index == index as usize);
    // Repeated, because its answer was lost: written meanwhile.
    if claim.is_none() && handle.settled_at(step).is_some() {
        return Ok(());
    }
    let claim = claim.ok_or(SaveError::NotBegun { step })?;
    if !failed.is_empty() {
        drop_claim(&claim, &failed);
        return Ok(());
    }
    // Repeated too: its bytes are being written, and its header may be free already.
    if matches!(*claim.phase.borrow(), Phase::Staged { .. }) {
        return Ok(());
    }
    let (handle, looked) = (Arc::clone(handle), claim.clone());
    let found = blocking(move || {
        let (file, length) = handle.slots.find(looked.index).ok_or("its file is gone")?;
        staged_length(&handle.slots, &looked, &file, length)
    })
    .await;
    match found {
        Ok(length) => {
            let staged = Phase::Staged { length, stall_ms: stall_us.div_ceil(1_000), since: boot_now() };
            give(&claim, staged);
            Ok(())
        }
        Err(why) => {
            let refused = SaveError::Header(why);
            drop_claim(&claim, &refused.to_string());
            Err(refused)
        }
    }
}

/// How many bytes are staged for this very use of the slot. Blocks on the slot's file.
pub(super) fn staged_length(slots: &Slots, claim: &Claim, file: &File, length: u64) -> Result<u64, String> {
    let header = slots.look(file, length)?;
    let (state, step, sequence) = (header.state, header.step, header.sequence);
    if (state, step, sequence) != (SlotState::Staged, claim.step, claim.sequence) {
        return Err(format!(
            "it says {state:?} of step {step}, use {sequence}, and is to say Staged of step {}, use {}",
            claim.step, claim.sequence
        ));
    }
    Ok(header.length)
}

pub(super) fn drop_claim(claim: &Claim, why: &str) {
    give(claim, Phase::Dropped(why.to_owned()));
}

/// The first word counts.
pub(super) fn give(claim: &Claim, phase: Phase) {
    claim.phase.send_if_modified(|now| {
        let is_first = *now == Phase::Handed;
        if is_first {
            *now = phase;
        }
        is_first
    });
}

fn part(handle: &WorkerHandle, seq: CheckpointSeq) -> Part {
    Part { attempt: handle.key.attempt, seq, rank: handle.key.rank }
}

/// One save from a slot, from when it was handed out until it is durable or given up.
pub(super) struct Save {
    pub(super) context: Arc<Context>,
    pub(super) handle: Arc<WorkerHandle>,
    pub(super) claim: Claim,
    pub(super) what: Wanted,
    pub(super) fulfils: u64,
}

impl Save {
    pub(super) async fn run(self, file: Option<Arc<File>>, seq: Option<CheckpointSeq>) {
        let (opened, phase) = tokio::join!(self.open(file.as_ref(), seq), self.until_given());
        let settled = match (opened, phase) {
            (_, None) => return,
            (Err(SaveError::Stopping), _) => return,
            (Err(SaveError::Skipped { .. }), _) => Settled::Skipped,
            (Err(err), _) => self.failed(err),
            (Ok(Opened::Before(saved)), _) => Settled::Saved(saved),
            (Ok(Opened::Anew(seq)), Some(Phase::Staged { length, stall_ms, since })) => {
                let written = match &file {
                    Some(file) => self.write(seq, Arc::clone(file), length, stall_ms, since).await,
                    None => Err(SaveError::Write("the slot's file is gone".to_owned())),
                };
                written.map_or_else(
                    |err| {
                        self.context.checkpoints.failed(part(&self.handle, seq), err.to_string());
                        self.failed(err)
                    },
                    Settled::Saved,
                )
            }
            (Ok(Opened::Anew(seq)), Some(Phase::Dropped(why))) => {
                self.context.checkpoints.failed(part(&self.handle, seq), why.clone());
                self.failed(SaveError::Write(why))
            }
            (Ok(Opened::Anew(_)), Some(Phase::Handed)) => return,
        };
        match &settled {
            Settled::Saved(saved) => self.handle.save_done(self.what.step, *saved, self.fulfils),
            Settled::Skipped | Settled::Failed(_) => self.handle.save_failed(self.fulfils),
        }
        self.handle.settle(self.what.step, settled);
        self.release().await;
    }

    fn failed(&self, err: SaveError) -> Settled {
        let (key, step) = (self.handle.key, self.what.step);
        tracing::warn!(attempt = %key.attempt, rank = key.rank, step, error = %err, "checkpoint not saved");
        Settled::Failed(err.into())
    }

    /// Notes in the slot what was opened: an agent that comes after this one may be too late to ask.
    async fn open(&self, file: Option<&Arc<File>>, seq: Option<CheckpointSeq>) -> Result<Opened, SaveError> {
        let opened = match seq {
            Some(seq) => Opened::Anew(seq),
            None => self.open_patiently().await?,
        };
        if let (Opened::Anew(seq), Some(file)) = (&opened, file) {
            let (note, file) = (Note { step: self.what.step, seq: *seq }, Arc::clone(file));
            let noted = blocking(move || note.write(&file)).await;
            if let Err(err) = noted {
                tracing::warn!(attempt = %self.handle.key.attempt, checkpoint = %seq, error = %err, "a slot takes no note");
            }
        }
        Ok(opened)
    }

    /// The bytes are safe in memory and nobody waits, so a log that is away for some minutes (its majority is lost, say)
    /// costs no save. The worker goes on into the other slot; after that it is told.
    async fn open_patiently(&self) -> Result<Opened, SaveError> {
        let until = Instant::now() + SLOT_WITHIN;
        loop {
            let opened = open(&self.context, &self.handle, self.what).await;
            let is_dropped = matches!(*self.claim.phase.borrow(), Phase::Dropped(_));
            match opened {
                Err(SaveError::Open(failure))
                    if failure.is_retryable() && !is_dropped && Instant::now() < until =>
                {
                    let (key, step) = (self.handle.key, self.what.step);
                    tracing::warn!(attempt = %key.attempt, rank = key.rank, step, error = %failure, "no coordinator opens this checkpoint; its bytes wait in memory");
                }
                opened => return opened,
            }
        }
    }

    /// Waits for the worker's word. A slot that was given up is free at once, whatever the log is still doing.
    async fn until_given(&self) -> Option<Phase> {
        let mut phase = self.claim.phase.subscribe();
        let given = phase.wait_for(|phase| *phase != Phase::Handed);
        let given = self.context.shutdown.run_until_cancelled(given).await?.ok()?.clone();
        if matches!(given, Phase::Dropped(_)) {
            self.release().await;
        }
        Some(given)
    }

    async fn release(&self) {
        let (handle, claim) = (Arc::clone(&self.handle), self.claim.clone());
        blocking(move || handle.slots.release(&claim)).await;
    }

    async fn write(
        &self,
        seq: CheckpointSeq,
        file: Arc<File>,
        length: u64,
        stall_ms: u64,
        since: BootTime,
    ) -> Result<Saved, SaveError> {
        let Self { context, handle, .. } = self;
        let part = part(handle, seq);
        context.checkpoints.staged(part);
        let failed = |err: std::io::Error| SaveError::Write(err.to_string());
        reach(Failpoint::AgentStageTaken).await.map_err(failed)?;
        let _turn = handle.save_turn.lock().await;
        let job = part.attempt.group.job;
        if let Some(Fate::Over(why)) = context.checkpoints.fate(job, seq) {
            return Err(SaveError::Write(why));
        }
        let key = ShardKey { job, attempt: part.attempt, seq, rank: part.rank };
        let store = context.shards.clone();
        let late = Arc::clone(context);
        let written = blocking(move || {
            write_patiently(&store, &key, &file, length)
                .map_err(refused)
                .and_then(|meta| in_time(&late, meta))
        });
        let meta = written.await?;
        let write_ms = boot_now().since(since);
        *handle.save_cost.lock() = Some(SaveCost { stall_ms, write_ms });
        context.metrics.checkpoint_took(metrics::Phase::Write, write_ms);
        context.metrics.checkpoint_bytes.inc_by(meta.size_bytes);
        announce_and_copy(context, handle, meta.clone());
        Ok(Saved { seq, root: meta.root, size_bytes: meta.size_bytes })
    }
}

/// Answers when the save of a step is settled.
pub(crate) async fn wait_saved(handle: &Arc<WorkerHandle>, step: u64) -> Result<Saved, SaveError> {
    let mut changes = handle.settled_changes();
    loop {
        // In this order: it is settled before its slot is free.
        let is_under_way = handle.slots.of_step(step).is_some();
        match handle.settled_at(step) {
            Some(Settled::Saved(saved)) => return Ok(saved),
            Some(Settled::Skipped) => return Err(SaveError::Skipped { step }),
            Some(Settled::Failed(failure)) => return Err(SaveError::Open(failure)),
            None if !is_under_way => return Err(SaveError::NotBegun { step }),
            None => {}
        }
        let changed = handle.cancel.run_until_cancelled(changes.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return Err(SaveError::Stopping);
        }
    }
}
