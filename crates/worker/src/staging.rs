//! Saving from memory: the parts are copied into a slot that the agent owns, and the training goes on. The agent, which
//! outlives this process, writes them to its disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outlast_failpoint::{Failpoint, hit};
use outlast_proto::worker::v1::{
    BeginSaveRequest, OpenSlotsRequest, SaveStagedRequest, Slot, WaitSavedRequest,
};
use outlast_staging::{DATA_AT, MappedSlot, Parts, SlotHeader, SlotState};

use crate::error::{CallError, SaveError};
use crate::link::persist;
use crate::worker::{QUICK_MAX, SAVE_MAX, Saved, WAIT_SLICE, Worker, bad, saved_of};

/// A checkpoint's part that the agent has in memory. It survives this process, and is being written to the agent's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    pub step: u64,
    /// The parts, as they are packed.
    pub size_bytes: u64,
    /// How long the call took that staged it: all that the training had to wait.
    pub stall: Duration,
}

/// By index: the agent hands out two, again and again.
pub(crate) type MappedSlots = BTreeMap<u32, MappedSlot>;

impl Worker {
    /// Hands the parts over as this rank's part of the checkpoint at `step`. Returns when they are copied into memory
    /// that the agent owns: they may change again, and what comes then no longer needs this process. A restore gives a
    /// folder back with one file for each part, as if [`Worker::save`] had been given it.
    ///
    /// Whether the step is skipped, because earlier ones are still being written, the log may say only after the copy;
    /// then [`Worker::wait_saved`] tells. Whichever of the two a rank hears it from, it is so for all ranks.
    pub fn save_parts(&self, step: u64, parts: &[(&str, &[u8])]) -> Result<Staged, SaveError> {
        self.stage(step, parts, false)
    }

    /// Like `save_parts`, but waits for earlier ones, whatever the job says: for the last one of a run.
    pub fn save_parts_in_turn(&self, step: u64, parts: &[(&str, &[u8])]) -> Result<Staged, SaveError> {
        self.stage(step, parts, true)
    }

    /// Makes the memory for parts of this size ready and maps it, so that the first save need not wait for it; it stays
    /// mapped between saves, and counts as shared memory of this process. False: it lies on the agent's disk, for want of
    /// shared memory.
    pub fn reserve(&self, size_bytes: u64) -> Result<bool, SaveError> {
        let client = self.client();
        let call = move || {
            let mut client = client.clone();
            async move { client.open_slots(OpenSlotsRequest { size_bytes }).await }
        };
        let opened = self.wait(persist(SAVE_MAX, call));
        let mut mapped = self.staging();
        let slots = opened.inspect_err(|_| mapped.clear())?.slots;
        for slot in &slots {
            // A save writes what cannot be mapped, and says what is wrong with it.
            if let Ok(file) = open(slot) {
                map(&mut mapped, slot, &file, DATA_AT + size_bytes);
            }
        }
        Ok(slots.iter().all(|slot| slot.in_memory))
    }

    /// Waits until what was staged is durable on the agent's disk, for at most `limit`.
    pub fn wait_saved(&self, staged: &Staged, limit: Duration) -> Result<Saved, SaveError> {
        let step = staged.step;
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(SaveError::TimedOut { step, waited_s: began.elapsed().as_secs() });
            }
            let client = self.client();
            let call = move || {
                let mut client = client.clone();
                async move { client.wait_saved(WaitSavedRequest { step }).await }
            };
            let slice = left.min(WAIT_SLICE);
            let answer =
                self.wait(async move { tokio::time::timeout(slice, persist(WAIT_SLICE, call)).await });
            if let Ok(answer) = answer {
                return saved_of(step, answer?);
            }
        }
    }

    fn stage(&self, step: u64, parts: &[(&str, &[u8])], in_turn: bool) -> Result<Staged, SaveError> {
        let parts = Parts::new(parts)?;
        // One is begun at a time: a later one would give it up.
        let mut mapped = self.staging();
        let began = Instant::now();
        let saving = self.board().wishes().save_begins(step);
        let staged = self.copy(step, &parts, in_turn, began, &mut mapped);
        self.note_failure(saving, staged.as_ref().err());
        let stall = began.elapsed();
        staged.map(|()| Staged { step, size_bytes: parts.packed_bytes(), stall })
    }

    fn copy(
        &self,
        step: u64,
        parts: &Parts<'_>,
        in_turn: bool,
        began: Instant,
        mapped: &mut MappedSlots,
    ) -> Result<(), SaveError> {
        let unheard = |source| SaveError::Slot { path: PathBuf::new(), source };
        hit(Failpoint::WorkerOpenBeforeCall).map_err(unheard)?;
        let request = BeginSaveRequest { step, size_bytes: parts.packed_bytes(), in_turn };
        let client = self.client();
        let call = move || {
            let mut client = client.clone();
            async move { client.begin_save(request).await }
        };
        let begun = self.wait(persist(SAVE_MAX, call));
        // A slot's file that is gone is memory as long as it is mapped here; for the next one it may be what is missing.
        let begun = begun.inspect_err(|_| mapped.clear())?;
        if begun.skipped {
            return Err(SaveError::Skipped { step });
        }
        if begun.kept {
            return Ok(());
        }
        let slot = begun.slot.ok_or_else(|| bad("slot", ""))?;
        let filled = self.fill(&slot, step, parts, mapped);
        let failed = filled.as_ref().err().map(io::Error::to_string).unwrap_or_default();
        let stall_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let given = self.give(SaveStagedRequest { step, slot: slot.index, stall_us, failed });
        filled.map_err(|source| SaveError::Slot { path: PathBuf::from(slot.path), source })?;
        Ok(given?)
    }

    fn fill(&self, slot: &Slot, step: u64, parts: &Parts<'_>, mapped: &mut MappedSlots) -> io::Result<()> {
        let length = parts.packed_bytes();
        if slot.size_bytes < length {
            return Err(io::Error::other(format!("it has {} bytes of room for {length}", slot.size_bytes)));
        }
        let file = open(slot)?;
        hit(Failpoint::WorkerStageBeforeCopy)?;
        match map(mapped, slot, &file, DATA_AT + length) {
            Some(mapping) => mapping.write_at(parts, DATA_AT)?,
            None => parts.write_at(&file, DATA_AT)?,
        }
        hit(Failpoint::WorkerStageBeforeMark)?;
        // Last: from here on the bytes survive this process.
        let (state, sequence, attempt) = (SlotState::Staged, slot.sequence, self.attempt());
        SlotHeader { state, step, sequence, length, attempt }.write(&file)?;
        hit(Failpoint::WorkerStageAfterMark)
    }

    fn give(&self, request: SaveStagedRequest) -> Result<(), CallError> {
        let client = self.client();
        let call = move || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.save_staged(request).await }
        };
        self.wait(persist(QUICK_MAX, call)).map(|_| ())
    }
}

fn open(slot: &Slot) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(&slot.path)
}

/// The slot's mapping with its first `end` bytes. `None`: it is to be written as a file.
fn map<'a>(mapped: &'a mut MappedSlots, slot: &Slot, file: &File, end: u64) -> Option<&'a mut MappedSlot> {
    let does = |kept: &&mut MappedSlot| kept.has(file, end).unwrap_or(false);
    if !slot.in_memory || mapped.get_mut(&slot.index).filter(does).is_none() {
        // First, so that a file that is gone keeps no memory.
        mapped.remove(&slot.index);
        if slot.in_memory {
            match MappedSlot::new(file) {
                Ok(new) => drop(mapped.insert(slot.index, new)),
                Err(err) => tracing::debug!(slot = slot.index, error = %err, "a slot cannot be mapped"),
            }
        }
    }
    mapped.get_mut(&slot.index).filter(does)
}
