//! A slot's first page. Format 1, all little-endian:
//!
//! ```text
//!    0  magic "OLSTAGE\0"         32  length of the packed parts, u64
//!    8  version, u32              40  bytes of the attempt's name, u32
//!   12  state, u32 (0, 1, 2)      44  the attempt's name, 80 bytes
//!   16  step, u64                124  crc32c of all before, u32
//!   24  sequence, u64
//! 2048  note: magic "OLNOTE\0\0", step u64, checkpoint's number u64, crc32c u32
//! ```
//! A reader refuses any other version. The checksum finds a header of which only a part was written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use outlast_types::{AttemptId, CheckpointSeq};

const MAGIC: &[u8; 8] = b"OLSTAGE\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
const NAME_AT: usize = 44;
const NAME_BYTES_MAX: usize = 80;
const NOTE_MAGIC: &[u8; 8] = b"OLNOTE\0\0";
const NOTE_AT: u64 = 2_048;
const NOTE_BYTES: usize = 28;
/// The packed parts begin at a page of their own.
pub const DATA_AT: u64 = 4_096;

/// Who may write a slot's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody.
    Free,
    /// The worker. If it dies, the bytes are dropped.
    Writing,
    /// Nobody: they are whole, and the agent reads them. If the worker dies, they are kept.
    Staged,
}

/// What the bytes behind it are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    pub state: SlotState,
    pub step: u64,
    /// Counts what the slot was handed out for: a late word about an older use is known as such.
    pub sequence: u64,
    /// Of the packed parts; 0 unless staged.
    pub length: u64,
    pub attempt: AttemptId,
}

/// Why a slot's header says nothing.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("the slot's header cannot be read")]
    Io(#[from] io::Error),
    #[error("the slot's header is damaged: {0}")]
    Damaged(&'static str),
    #[error("the slot's header has format {0}, but this program knows format {VERSION}")]
    Version(u32),
}

impl SlotHeader {
    /// # Errors
    /// Why it says nothing: nothing behind it may be believed then.
    pub fn read(slot: &File) -> Result<Self, HeaderError> {
        let mut bytes = [0; HEADER_BYTES];
        slot.read_exact_at(&mut bytes, 0)?;
        Self::decode(&bytes)
    }

    /// # Errors
    /// What the file says.
    pub fn write(&self, slot: &File) -> io::Result<()> {
        slot.write_all_at(&self.encode(), 0)
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let state: u32 = match self.state {
            SlotState::Free => 0,
            SlotState::Writing => 1,
            SlotState::Staged => 2,
        };
        let name = self.attempt.to_string();
        assert!(
            name.len() <= NAME_BYTES_MAX,
            "five numbers of at most 20 digits, and no long ones, name an attempt"
        );
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&state.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.step.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..44].copy_from_slice(&(name.len() as u32).to_le_bytes());
        bytes[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        let (body, checksum) = bytes.split_at_mut(HEADER_BYTES - 4);
        checksum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if bytes[..8] != *MAGIC {
            return Err(HeaderError::Damaged("it does not begin as one"));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        if u32_at(bytes, HEADER_BYTES - 4) != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(HeaderError::Damaged("its checksum does not fit"));
        }
        let state = match u32_at(bytes, 12) {
            0 => SlotState::Free,
            1 => SlotState::Writing,
            2 => SlotState::Staged,
            _ => return Err(HeaderError::Damaged("its state is none")),
        };
        let length = u32_at(bytes, 40) as usize;
        let name = bytes
            .get(NAME_AT..NAME_AT + length.min(NAME_BYTES_MAX))
            .and_then(|name| std::str::from_utf8(name).ok());
        let attempt =
            name.and_then(|name| name.parse().ok()).ok_or(HeaderError::Damaged("it names no attempt"))?;
        let (step, sequence, length) = (u64_at(bytes, 16), u64_at(bytes, 24), u64_at(bytes, 32));
        Ok(Self { state, step, sequence, length, attempt })
    }
}

/// The agent's own note in a slot: which checkpoint was opened for the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub step: u64,
    pub seq: CheckpointSeq,
}

impl Note {
    /// `None`: nothing was noted, or not to its end.
    pub fn read(slot: &File) -> Option<Self> {
        let mut bytes = [0; NOTE_BYTES];
        slot.read_exact_at(&mut bytes, NOTE_AT).ok()?;
        let is_whole = bytes[..8] == *NOTE_MAGIC && u32_at(&bytes, 24) == crc32c::crc32c(&bytes[..24]);
        is_whole.then(|| Self { step: u64_at(&bytes, 8), seq: CheckpointSeq(u64_at(&bytes, 16)) })
    }

    /// # Errors
    /// What the file says.
    pub fn write(&self, slot: &File) -> io::Result<()> {
        let mut bytes = [0; NOTE_BYTES];
        bytes[..8].copy_from_slice(NOTE_MAGIC);
        bytes[8..16].copy_from_slice(&self.step.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.0.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&checksum.to_le_bytes());
        slot.write_all_at(&bytes, NOTE_AT)
    }

    /// # Errors
    /// What the file says.
    pub fn clear(slot: &File) -> io::Result<()> {
        slot.write_all_at(&[0; NOTE_BYTES], NOTE_AT)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SlotHeader {
        let attempt = "j12/0@3.4".parse().expect("valid");
        SlotHeader { state: SlotState::Staged, step: 7, sequence: 3, length: 1 << 40, attempt }
    }

    #[test]
    fn a_header_comes_back_and_any_flipped_bit_is_seen() {
        let bytes = header().encode();
        assert_eq!(SlotHeader::decode(&bytes).expect("good"), header());
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SlotHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(SlotHeader::decode(&[0; HEADER_BYTES]).is_err(), "a new file says nothing");
    }

    #[test]
    fn the_longest_name_of_an_attempt_has_room() {
        let longest = format!("j{0}/{1}@{0}.{0}", u64::MAX, u32::MAX);
        assert!(longest.len() <= NAME_BYTES_MAX && NAME_AT + NAME_BYTES_MAX == HEADER_BYTES - 4);
        let attempt = longest.parse().expect("valid");
        let longest = SlotHeader { attempt, ..header() };
        assert_eq!(SlotHeader::decode(&longest.encode()).expect("good"), longest);
    }

    #[test]
    fn a_note_is_whole_or_none() {
        let slot = tempfile::tempfile().expect("a file");
        assert_eq!(Note::read(&slot), None);
        let note = Note { step: 7, seq: CheckpointSeq(9) };
        note.write(&slot).expect("written");
        assert_eq!(Note::read(&slot), Some(note));
        slot.write_all_at(&[1], NOTE_AT + 20).expect("written");
        assert_eq!(Note::read(&slot), None);
        note.write(&slot).expect("written");
        Note::clear(&slot).expect("written");
        assert_eq!(Note::read(&slot), None);
    }
}
