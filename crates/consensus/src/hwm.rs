//! The high-water file: how far this coordinator's log is known to have been durable.
//!
//! sled recovers to the last good prefix without a word, and a voter that forgot acknowledged entries breaks Raft. So a
//! second, independent file remembers the newest entry and the vote; a log that comes back with less is refused
//! (invariant 10). Two slots are written in turn, so that a torn write leaves the older one.
//!
//! ```text
//! slot (64 bytes): magic u32 | crc32c u32 | seq u64 | last term u64 | last index+1 u64 | vote term u64 | voted_for+1 u64 | committed u64 | 0
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::ballot::Ballot;
use crate::disk::check::CheckError;
use crate::disk::{Damage, LogMark, Recovered};
use crate::folder::sync_dir;

const MAGIC: u32 = 0x4f4c_4857;
const SLOT_BYTES: usize = 64;
/// At most this old when an acknowledgement goes out; the price is one more fdatasync a second.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(1);

/// What the log must at least have when it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct HighMark {
    pub(crate) last: Option<LogMark>,
    pub(crate) vote: Option<Ballot>,
}

pub(crate) struct HighWater {
    file: File,
    seq: u64,
    written: HighMark,
    /// `None` until this process has written it.
    written_at: Option<Instant>,
}

fn encode(seq: u64, mark: &HighMark) -> [u8; SLOT_BYTES] {
    let vote = mark.vote.unwrap_or_default();
    let words = [
        seq,
        mark.last.map_or(0, |last| last.term),
        mark.last.map_or(0, |last| last.index + 1),
        vote.term,
        vote.voted_for.map_or(0, |id| id + 1),
        u64::from(vote.committed),
    ];
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC.to_le_bytes());
    for (i, word) in words.iter().enumerate() {
        slot[8 + 8 * i..16 + 8 * i].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c::crc32c(&slot[8..]);
    slot[4..8].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, HighMark)> {
    let word = |i: usize| u64::from_le_bytes(slot[8 + 8 * i..16 + 8 * i].try_into().expect("eight bytes"));
    let four = |at: usize| u32::from_le_bytes(slot[at..at + 4].try_into().expect("four bytes"));
    if four(0) != MAGIC || four(4) != crc32c::crc32c(&slot[8..]) {
        return None;
    }
    let last = word(2).checked_sub(1).map(|index| LogMark { term: word(1), index });
    let vote = Ballot { term: word(3), voted_for: word(4).checked_sub(1), committed: word(5) != 0 };
    Some((word(0), HighMark { last, vote: (vote != Ballot::default()).then_some(vote) }))
}

impl HighWater {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut high = Self { file, seq: 0, written: HighMark::default(), written_at: None };
        high.write(HighMark::default())?;
        high.write(HighMark::default())?;
        path.parent().map_or(Ok(()), sync_dir)?;
        Ok(high)
    }

    /// Opens the file and refuses a log that has less than it says.
    ///
    /// # Errors
    /// [`Damage::SilentLoss`] when the log, or this file itself, lost something; the disk's own error otherwise.
    pub(crate) fn open(path: &Path, log: &Recovered) -> Result<Self, CheckError> {
        let lost = |reason: String| Damage::SilentLoss { reason };
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(lost("the high-water file is missing".to_owned()).into());
            }
            Err(err) => return Err(CheckError::Io(err)),
        };
        let mut slots = [0; 2 * SLOT_BYTES];
        let read = file.read_at(&mut slots, 0).map_err(CheckError::Io)?;
        let newest = slots[..read].chunks_exact(SLOT_BYTES).filter_map(decode).max_by_key(|(seq, _)| *seq);
        let (seq, written) =
            newest.ok_or_else(|| lost("both slots of the high-water file are damaged".to_owned()))?;
        compare(&written, log).map_err(lost)?;
        Ok(Self { file, seq, written, written_at: None })
    }

    pub(crate) fn written(&self) -> HighMark {
        self.written
    }

    pub(crate) fn is_old(&self) -> bool {
        self.written_at.is_none_or(|at| at.elapsed() >= AGE_MAX)
    }

    pub(crate) fn write(&mut self, mark: HighMark) -> io::Result<()> {
        self.seq += 1;
        let offset = (self.seq % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&encode(self.seq, &mark), offset)?;
        self.file.sync_data()?;
        self.written = mark;
        self.written_at = Some(Instant::now());
        Ok(())
    }
}

fn compare(high: &HighMark, log: &Recovered) -> Result<(), String> {
    let index = |mark: Option<LogMark>| mark.map(|mark| mark.index);
    let term = |mark: Option<LogMark>| mark.map(|mark| mark.term);
    if index(log.last) < index(high.last) || term(log.last) < term(high.last) {
        return Err(format!("the log ends at {:?} but was durable up to {:?}", log.last, high.last));
    }
    if let Some(earlier) = high.vote
        && !log.vote.is_some_and(|vote| vote.follows(&earlier))
    {
        return Err(format!("the vote is {:?} but {earlier:?} was durable", log.vote));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn high(index: u64, term: u64) -> HighMark {
        let vote = Ballot { term, voted_for: Some(1), committed: true };
        HighMark { last: Some(LogMark { term, index }), vote: Some(vote) }
    }

    fn log(index: u64, term: u64) -> Recovered {
        Recovered { last: high(index, term).last, vote: high(index, term).vote, ..Recovered::default() }
    }

    #[test]
    fn invariant_10_a_log_behind_the_high_water_mark_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("hwm");
        let mut file = HighWater::create(&path).expect("new");
        file.write(high(10, 3)).expect("write");
        HighWater::open(&path, &log(10, 3)).expect("same");
        HighWater::open(&path, &log(12, 4)).expect("more");
        assert!(HighWater::open(&path, &log(9, 3)).is_err(), "entries lost");
        assert!(HighWater::open(&path, &log(10, 2)).is_err(), "vote lost");
        assert!(HighWater::open(&path, &Recovered::default()).is_err(), "everything lost");
    }

    #[test]
    fn a_torn_slot_leaves_the_older_one_and_two_torn_slots_are_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("hwm");
        let mut file = HighWater::create(&path).expect("new");
        file.write(high(10, 3)).expect("write");
        file.write(high(11, 3)).expect("write");
        let newest_slot = (file.seq % 2) * SLOT_BYTES as u64;
        file.file.write_all_at(&[0xff; 20], newest_slot + 8).expect("tear");
        assert_eq!(HighWater::open(&path, &log(10, 3)).expect("older slot").written(), high(10, 3));
        file.file.write_all_at(&[0xff; 128], 0).expect("tear all");
        assert!(HighWater::open(&path, &log(99, 9)).is_err());
    }
}
