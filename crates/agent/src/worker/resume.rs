//! Slots whose worker or whose agent is gone: what is staged in them is kept, what is not is dropped.

use std::fs::File;
use std::sync::Arc;

use outlast_process::boot_now;
use outlast_staging::{Note, SlotHeader, SlotState};

use super::handle::WorkerHandle;
use super::save::Wanted;
use super::slots::{Phase, Slots};
use super::staged::{Save, drop_claim, give, staged_length};
use crate::context::{Context, blocking};

/// Goes on with what an earlier agent has begun for this worker.
pub(crate) async fn resume(context: &Arc<Context>, handle: &Arc<WorkerHandle>) {
    for index in Slots::indices() {
        let handle2 = Arc::clone(handle);
        let found = blocking(move || {
            let (file, length) = handle2.slots.find(index)?;
            let header = handle2.slots.look(&file, length);
            Some((header, Note::read(&file), Arc::new(file)))
        });
        let Some((header, note, file)) = found.await else { continue };
        match header {
            Ok(header) if header.state != SlotState::Free => {
                go_on(context, handle, index, header, note, file)
            }
            Ok(_) => {}
            Err(why) => {
                let key = handle.key;
                tracing::warn!(attempt = %key.attempt, rank = key.rank, slot = index, why, "a slot's header says nothing; its bytes are dropped");
            }
        }
    }
}

fn go_on(
    context: &Arc<Context>,
    handle: &Arc<WorkerHandle>,
    index: usize,
    header: SlotHeader,
    note: Option<Note>,
    file: Arc<File>,
) {
    let step = header.step;
    let phase = match header.state {
        SlotState::Staged => Phase::Staged { length: header.length, stall_ms: 0, since: boot_now() },
        _ => Phase::Handed,
    };
    let Some(claim) = handle.slots.claim_found(index, &header, phase) else { return };
    tracing::info!(attempt = %handle.key.attempt, rank = handle.key.rank, step, slot = index, state = ?header.state, "a predecessor's save goes on");
    let fulfils = handle.save_begun(step, boot_now());
    let what = Wanted { step, in_turn: false };
    let save = Save { context: Arc::clone(context), handle: Arc::clone(handle), claim, what, fulfils };
    let seq = note.filter(|note| note.step == step).map(|note| note.seq);
    handle.saves.spawn(save.run(Some(file), seq));
}

/// The worker is over: what it had staged, even without saying so, is kept; what it was still writing is dropped.
pub(crate) async fn worker_ended(context: &Arc<Context>, handle: &Arc<WorkerHandle>) {
    resume(context, handle).await;
    for claim in handle.slots.handed() {
        let (handle2, looked) = (Arc::clone(handle), claim.clone());
        let found = blocking(move || {
            let (file, length) = handle2.slots.find(looked.index)?;
            staged_length(&handle2.slots, &looked, &file, length).ok()
        });
        match found.await {
            Some(length) => give(&claim, Phase::Staged { length, stall_ms: 0, since: boot_now() }),
            None => drop_claim(&claim, "the worker ended before its bytes were staged"),
        }
    }
}
