//! The two slots of memory in which a worker stages its checkpoints: files that the agent makes, sizes, hands out, takes
//! back and deletes. Who uses a slot is known here, and in its header for the agent that comes after this one.
//!
//! ```text
//!  free ──claim──► handed (header WRITING) ──take──► staged (header STAGED) ──written──► free
//!                     └──drop: the copy failed, a later save, the worker's end ──────────►┘
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast_process::boot_now;
use outlast_staging::{DATA_AT, Note, SlotHeader, SlotState};
use outlast_types::{AttemptId, BootTime};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::sync::watch;

use super::folder::remove_dir;
use super::memory;
use crate::folder::{owned_dir, private_dir};

/// One being written to the disk, one being filled.
const SLOTS: usize = 2;
/// No shard is larger (see `peer::shards`).
const SLOT_BYTES_MAX: u64 = 1 << 40;
/// A state that grows a little does not need new room each time.
const GRAIN_BYTES: u64 = 1 << 20;
/// Touched at a time.
const TOUCH_BYTES: usize = 1 << 20;

/// Why there is no slot of this size.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error(
        "a slot of {wanted_bytes} bytes is above the limit of {limit_bytes} (the worker's memory, or 1 TiB)"
    )]
    TooLarge { wanted_bytes: u64, limit_bytes: u64 },
    #[error("{wanted_bytes} bytes more are wanted in {} for staging, and {free_bytes} are free", dir.display())]
    NoRoom { dir: PathBuf, wanted_bytes: u64, free_bytes: u64 },
    #[error("a slot for staging cannot be made in {}: {source}", dir.display())]
    Io {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What becomes of a slot that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The worker fills it.
    Handed,
    /// The bytes are whole, since then.
    Staged { length: u64, stall_ms: u64, since: BootTime },
    /// They will not come.
    Dropped(String),
}

/// A slot as the worker is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) sequence: u64,
    pub(crate) path: PathBuf,
    /// Room behind the header.
    pub(crate) size_bytes: u64,
    pub(crate) in_memory: bool,
    pub(crate) file: Arc<File>,
}

/// One use of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) index: usize,
    pub(crate) step: u64,
    pub(crate) sequence: u64,
    pub(crate) phase: watch::Sender<Phase>,
}

#[derive(Debug)]
pub(crate) struct Slots {
    attempt: AttemptId,
    /// On tmpfs; `None`: this machine has none that would do.
    memory: Option<PathBuf>,
    disk: PathBuf,
    limit_bytes: u64,
    book: Mutex<[Option<Claim>; SLOTS]>,
    /// Held while a slot's file is made or its new pages are touched: nobody else writes to it then.
    making: [Mutex<()>; SLOTS],
    freed: watch::Sender<u64>,
    next_sequence: AtomicU64,
}

impl Slots {
    /// `memory_bytes`: what the worker may use; 0: no limit.
    pub(crate) fn new(attempt: AttemptId, memory: Option<PathBuf>, disk: PathBuf, memory_bytes: u64) -> Self {
        let limit_bytes = if memory_bytes == 0 { SLOT_BYTES_MAX } else { memory_bytes.min(SLOT_BYTES_MAX) };
        Self {
            attempt,
            memory,
            disk,
            limit_bytes,
            book: Mutex::default(),
            making: Default::default(),
            freed: watch::Sender::new(0),
            // Of this boot's time, so that a restarted agent's are newer than those in the headers.
            next_sequence: AtomicU64::new(boot_now().0),
        }
    }

    /// Takes a free slot, if there is one.
    pub(crate) fn claim(&self, step: u64) -> Option<Claim> {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let mut book = self.book.lock();
        let index = book.iter().position(Option::is_none)?;
        let claim = Claim { index, step, sequence, phase: watch::Sender::new(Phase::Handed) };
        book[index] = Some(claim.clone());
        Some(claim)
    }

    /// Takes back what an earlier agent has handed out.
    pub(crate) fn claim_found(&self, index: usize, header: &SlotHeader, phase: Phase) -> Option<Claim> {
        let mut book = self.book.lock();
        if book[index].is_some() {
            return None;
        }
        let SlotHeader { step, sequence, .. } = *header;
        let claim = Claim { index, step, sequence, phase: watch::Sender::new(phase) };
        book[index] = Some(claim.clone());
        Some(claim)
    }

    /// The newest use for a step, while it lasts.
    pub(crate) fn of_step(&self, step: u64) -> Option<Claim> {
        let book = self.book.lock();
        let of_step = book.iter().flatten().filter(|claim| claim.step == step);
        of_step.max_by_key(|claim| claim.sequence).cloned()
    }

    /// Slots that the worker still fills.
    pub(crate) fn handed(&self) -> Vec<Claim> {
        let book = self.book.lock();
        book.iter().flatten().filter(|claim| *claim.phase.borrow() == Phase::Handed).cloned().collect()
    }

    pub(crate) fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    /// Nobody needs the bytes any more. Blocks on the slot's file.
    pub(crate) fn release(&self, claim: &Claim) {
        let is_it = |used: &Option<Claim>| used.as_ref().is_some_and(|used| used.sequence == claim.sequence);
        if !is_it(&self.book.lock()[claim.index]) {
            return;
        }
        if let Some((file, _)) = self.find(claim.index)
            && let Err(err) =
                Note::clear(&file).and_then(|()| self.header(claim, SlotState::Free).write(&file))
        {
            tracing::warn!(attempt = %self.attempt, slot = claim.index, error = %err, "a slot cannot be marked free");
        }
        self.book.lock()[claim.index] = None;
        self.freed.send_modify(|count| *count += 1);
    }

    /// Makes room for `size_bytes` in the claimed slot and hands it to the worker. Blocks on the slot's file.
    ///
    /// # Errors
    /// Where there is no such room.
    pub(crate) fn hand_out(&self, claim: &Claim, size_bytes: u64) -> Result<Slot, SlotError> {
        let _making = self.making[claim.index].lock();
        let (mut slot, _) = self.sized(claim.index, size_bytes)?;
        slot.sequence = claim.sequence;
        // A repeated call: the header is right, and the checkpoint may be noted already.
        if SlotHeader::read(&slot.file).is_ok_and(|header| header.sequence == claim.sequence) {
            return Ok(slot);
        }
        let begun =
            Note::clear(&slot.file).and_then(|()| self.header(claim, SlotState::Writing).write(&slot.file));
        let dir = || slot.path.parent().unwrap_or(Path::new("/")).to_owned();
        begun.map_err(|source| SlotError::Io { dir: dir(), source })?;
        Ok(slot)
    }

    /// Makes both slots ready, those in use left out. Blocks on their files.
    ///
    /// # Errors
    /// Where there is no such room.
    pub(crate) fn reserve(&self, size_bytes: u64) -> Result<Vec<Slot>, SlotError> {
        (0..SLOTS).filter_map(|index| self.prepare(index, size_bytes).transpose()).collect()
    }

    /// A save that takes the slot meanwhile waits for its file before it is handed out.
    fn prepare(&self, index: usize, size_bytes: u64) -> Result<Option<Slot>, SlotError> {
        let _making = self.making[index].lock();
        if self.book.lock()[index].is_some() {
            return Ok(None);
        }
        let (slot, had) = self.sized(index, size_bytes)?;
        if slot.in_memory {
            let dir = || slot.path.parent().unwrap_or(Path::new("/")).to_owned();
            let touched = touch(&slot.file, had, DATA_AT + slot.size_bytes);
            touched.map_err(|source| SlotError::Io { dir: dir(), source })?;
        }
        Ok(Some(slot))
    }

    /// The slot's file with room for so much, and how long it was before.
    fn sized(&self, index: usize, size_bytes: u64) -> Result<(Slot, u64), SlotError> {
        if size_bytes > self.limit_bytes {
            return Err(SlotError::TooLarge { wanted_bytes: size_bytes, limit_bytes: self.limit_bytes });
        }
        let wanted = (DATA_AT + size_bytes).next_multiple_of(GRAIN_BYTES);
        let dir = self.place(wanted);
        let path = dir.join(name(index));
        let in_memory = dir != self.disk;
        let failed = |source| SlotError::Io { dir: dir.clone(), source };
        self.make(&dir).map_err(failed)?;
        if let Some(memory) = self.memory.as_ref().filter(|memory| **memory != dir) {
            // It has outgrown the memory that it was in.
            let _ = fs::remove_file(memory.join(name(index)));
        }
        let file = open(&path, true).map_err(failed)?;
        let has = file.metadata().map_err(failed)?.len();
        if has < wanted {
            let room =
                |free_bytes| SlotError::NoRoom { dir: dir.clone(), wanted_bytes: wanted - has, free_bytes };
            // A tmpfs may promise more than the machine has: asking it for that would have somebody killed.
            if in_memory && memory::available_bytes().is_some_and(|free| free < wanted - has) {
                return Err(room(memory::available_bytes().unwrap_or(0)));
            }
            match fallocate(&file, FallocateFlags::empty(), 0, wanted) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                    let _ = file.set_len(has);
                    return Err(room(memory::free_bytes(&dir)));
                }
                // A file system that cannot reserve tells of a full disk later.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(wanted).map_err(failed)?,
                Err(err) => return Err(failed(err.into())),
            }
        }
        let size_bytes = wanted.max(has) - DATA_AT;
        Ok((Slot { index, sequence: 0, path, size_bytes, in_memory, file: Arc::new(file) }, has))
    }

    /// Where a slot of this size lies: in memory, unless all memory of that kind would never do for both.
    fn place(&self, wanted: u64) -> PathBuf {
        let fits = |dir: &&PathBuf| {
            let base = dir.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
            memory::size_bytes(base) / SLOTS as u64 >= wanted
        };
        self.memory.as_ref().filter(fits).unwrap_or(&self.disk).clone()
    }

    fn make(&self, dir: &Path) -> io::Result<()> {
        if dir != self.disk
            && let Some(base) = dir.parent()
        {
            owned_dir(base).map_err(io::Error::other)?;
        }
        private_dir(dir).map_err(io::Error::other)
    }

    /// A slot's file as it is, with its length. Of two, the one that says that it is in use.
    pub(crate) fn find(&self, index: usize) -> Option<(File, u64)> {
        let dirs = self.memory.iter().chain([&self.disk]);
        let files = dirs.filter_map(|dir| {
            let file = open(&dir.join(name(index)), false).ok()?;
            let length = file.metadata().ok()?.len();
            Some((file, length))
        });
        let is_used = |(file, _): &(File, u64)| {
            SlotHeader::read(file).is_ok_and(|header| header.state != SlotState::Free)
        };
        let mut files: Vec<_> = files.collect();
        let at = files.iter().position(is_used).unwrap_or(0);
        (!files.is_empty()).then(|| files.swap_remove(at))
    }

    pub(crate) fn indices() -> std::ops::Range<usize> {
        0..SLOTS
    }

    /// What a slot's header says, if it is about bytes of this worker that lie in it whole.
    ///
    /// # Errors
    /// Why nothing may be believed.
    pub(crate) fn look(&self, file: &File, length: u64) -> Result<SlotHeader, String> {
        let header = SlotHeader::read(file).map_err(|err| err.to_string())?;
        if header.attempt != self.attempt {
            return Err(format!("it is about attempt {}", header.attempt));
        }
        if header.state == SlotState::Staged && header.length > length.saturating_sub(DATA_AT) {
            return Err(format!("it claims {} bytes, and the slot has room for less", header.length));
        }
        Ok(header)
    }

    fn header(&self, claim: &Claim, state: SlotState) -> SlotHeader {
        let Claim { step, sequence, .. } = *claim;
        SlotHeader { state, step, sequence, length: 0, attempt: self.attempt }
    }

    /// The worker is over, and its bytes with it. Blocks on the disk.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let dirs: Vec<_> = self.memory.iter().chain([&self.disk]).collect();
        dirs.iter().try_for_each(|dir| remove_dir(dir))?;
        if let Some(base) = self.memory.as_ref().and_then(|dir| dir.parent()) {
            // Fails while another worker has slots there.
            let _ = fs::remove_dir(base);
        }
        Ok(())
    }
}

fn name(index: usize) -> String {
    format!("slot-{index}")
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Memory that is only promised costs its first writer far more than a copy: on a virtual machine twenty times as much was
/// seen. Here that is nobody's stall.
fn touch(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; TOUCH_BYTES];
    let mut at = from;
    while at < to {
        let count = usize::try_from(to - at).map_or(TOUCH_BYTES, |left| left.min(TOUCH_BYTES));
        file.write_all_at(&zeros[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

/// Removes what dead agents and workers left in the agent's folder of slots. Blocks.
pub(crate) fn sweep(base: &Path, keep: &[String]) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let is_kept = entry.file_name().to_str().is_some_and(|name| keep.iter().any(|keep| keep == name));
        if !is_kept && let Err(err) = remove_dir(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), error = %err, "an old worker's slots stay");
        }
    }
    let _ = fs::remove_dir(base);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(tmp: &Path, memory_bytes: u64) -> Slots {
        Slots::new("j1/0@1.1".parse().expect("valid"), None, tmp.join("slots"), memory_bytes)
    }

    #[test]
    fn a_slot_has_one_user_grows_and_is_free_again() {
        let tmp = tempfile::tempdir().expect("a folder");
        let slots = slots(tmp.path(), 0);
        let (one, two) = (slots.claim(1).expect("free"), slots.claim(2).expect("free"));
        assert!(one.index != two.index && slots.claim(3).is_none());
        let slot = slots.hand_out(&one, 10).expect("room");
        assert!(!slot.in_memory && slot.size_bytes >= 10);
        let grown = slots.hand_out(&one, 3 << 20).expect("room");
        assert!(grown.size_bytes >= 3 << 20 && grown.path == slot.path);
        let header = slots.look(&grown.file, DATA_AT + grown.size_bytes).expect("good");
        assert_eq!((header.state, header.step, header.sequence), (SlotState::Writing, 1, one.sequence));
        slots.release(&one);
        let three = slots.claim(3).expect("free");
        assert_eq!(three.index, one.index);
        slots.release(&one);
        assert!(slots.claim(4).is_none(), "a late word about an older use frees nothing");
    }

    #[test]
    fn a_reserve_leaves_the_bytes_of_slots_that_are_in_use_alone() {
        let tmp = tempfile::tempdir().expect("a folder");
        let (memory, disk) = (tmp.path().join("shm/agent"), tmp.path().join("disk"));
        let attempt = "j1/0@1.1".parse().expect("valid");
        let slots = Slots::new(attempt, Some(memory), disk, 0);
        let reserved = slots.reserve(5_000).expect("room");
        assert_eq!(reserved.iter().filter(|slot| slot.in_memory).count(), SLOTS);
        let claim = slots.claim(1).expect("free");
        let slot = slots.hand_out(&claim, 5_000).expect("room");
        slot.file.write_all_at(b"state", DATA_AT).expect("staged");
        let others = slots.reserve(3 << 20).expect("room");
        assert_eq!(others.iter().map(|slot| slot.index).collect::<Vec<_>>(), [1 - claim.index]);
        slots.release(&claim);
        assert_eq!(slots.reserve(3 << 20).expect("room").len(), SLOTS);
        let (file, length) = slots.find(claim.index).expect("there");
        let mut kept = [0; 5];
        file.read_exact_at(&mut kept, DATA_AT).expect("read");
        assert_eq!((&kept, length >= 3 << 20), (b"state", true), "only new pages are touched");
    }

    #[test]
    fn what_a_worker_may_not_use_it_does_not_get() {
        let tmp = tempfile::tempdir().expect("a folder");
        let slots = slots(tmp.path(), 1 << 20);
        let claim = slots.claim(1).expect("free");
        assert!(matches!(slots.hand_out(&claim, (1 << 20) + 1), Err(SlotError::TooLarge { .. })));
        assert!(slots.hand_out(&claim, 1 << 20).is_ok());
    }

    #[test]
    fn a_header_that_cannot_be_true_is_not_believed() {
        let tmp = tempfile::tempdir().expect("a folder");
        let slots = slots(tmp.path(), 0);
        let claim = slots.claim(1).expect("free");
        let slot = slots.hand_out(&claim, 10).expect("room");
        let whole = DATA_AT + slot.size_bytes;
        let staged = SlotHeader { length: slot.size_bytes, ..slots.header(&claim, SlotState::Staged) };
        staged.write(&slot.file).expect("written");
        assert_eq!(slots.look(&slot.file, whole).expect("good"), staged);
        SlotHeader { length: slot.size_bytes + 1, ..staged.clone() }.write(&slot.file).expect("written");
        assert!(slots.look(&slot.file, whole).is_err(), "more than there is room for");
        let other = "j1/0@1.2".parse().expect("valid");
        SlotHeader { attempt: other, ..staged }.write(&slot.file).expect("written");
        assert!(slots.look(&slot.file, whole).is_err(), "of another attempt");
    }

    #[test]
    fn leftovers_go_and_what_is_named_stays() {
        let tmp = tempfile::tempdir().expect("a folder");
        for name in ["a", "b"] {
            fs::create_dir(tmp.path().join(name)).expect("made");
            fs::write(tmp.path().join(name).join("slot-0"), b"x").expect("written");
        }
        sweep(tmp.path(), &["b".to_owned()]);
        assert!(!tmp.path().join("a").exists() && tmp.path().join("b/slot-0").exists());
        sweep(tmp.path(), &[]);
        assert!(!tmp.path().exists(), "an empty one goes too");
    }
}
