//! What must hold of a log that was just opened, and what was found in it.

use std::io;
use std::ops::Range;

use super::{DiskReader, LogMark, MetaKey};
use crate::ballot::Ballot;

/// The fast check reads this many of the newest entries; the deep one all.
const FAST_ENTRIES: u64 = 10_000;
const CHUNK_ENTRIES: u64 = 256;
const CHUNK_BYTES: usize = 8 << 20;
pub(crate) const FORMAT: u64 = 1;

/// What an opened log holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recovered {
    pub vote: Option<Ballot>,
    pub committed: Option<LogMark>,
    pub purged: Option<LogMark>,
    /// The newest entry, or `purged` where there is none.
    pub last: Option<LogMark>,
    pub cluster_id: String,
    pub coordinator: u64,
    pub entries_checked: u64,
}

/// Why a log cannot be used under its id any more.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("the log could not be opened: {reason}")]
    Unopenable { reason: String },
    #[error("the log is missing although this folder belongs to {owner}")]
    Missing { owner: String },
    #[error("the {what} does not pass its checks")]
    Bad {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the log has a hole: entry {expected} is missing")]
    Hole { expected: u64 },
    #[error("the term goes back at entry {index}")]
    TermWentBack { index: u64 },
    #[error("the marks contradict each other: {reason}")]
    Marks { reason: String },
    #[error("the disk lost acknowledged writes without an error: {reason}")]
    SilentLoss { reason: String },
    #[error("no snapshot can be used: {reason}")]
    Snapshot { reason: String },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("the disk could not be read")]
    Io(#[source] io::Error),
}

fn bad(what: impl Into<String>) -> impl FnOnce(io::Error) -> CheckError {
    |source| match source.kind() {
        io::ErrorKind::InvalidData => Damage::Bad { what: what.into(), source }.into(),
        _ => CheckError::Io(source),
    }
}

fn decode<T: serde::de::DeserializeOwned>(
    reader: &dyn DiskReader,
    key: MetaKey,
) -> Result<Option<T>, CheckError> {
    let Some(bytes) = reader.meta(key).map_err(bad(key.name()))? else { return Ok(None) };
    let parsed = rmp_serde::from_slice(&bytes).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err));
    parsed.map(Some).map_err(bad(key.name()))
}

pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("writing into memory cannot fail")
}

fn required<T: serde::de::DeserializeOwned>(reader: &dyn DiskReader, key: MetaKey) -> Result<T, CheckError> {
    decode(reader, key)?
        .ok_or_else(|| Damage::Marks { reason: format!("no {} is recorded", key.name()) }.into())
}

/// Reads the marks and checks the newest entries (all of them if `deep`).
///
/// # Errors
/// The first damage found, or the disk's own error.
pub(crate) fn check_log(reader: &dyn DiskReader, deep: bool) -> Result<Recovered, CheckError> {
    let format: u64 = required(reader, MetaKey::Format)?;
    if format != FORMAT {
        return Err(CheckError::Io(io::Error::other(format!(
            "log format {format}; this build knows {FORMAT}: upgrade it"
        ))));
    }
    let mut found = Recovered {
        vote: decode(reader, MetaKey::Vote)?,
        committed: decode(reader, MetaKey::Committed)?,
        purged: decode(reader, MetaKey::Purged)?,
        cluster_id: required(reader, MetaKey::Cluster)?,
        coordinator: required(reader, MetaKey::Coordinator)?,
        ..Recovered::default()
    };
    found.last = found.purged;
    let next = found.purged.map_or(0, |purged| purged.index + 1);
    let bounds = reader.bounds().map_err(bad("index"))?;
    if let Some((_, last)) = bounds.filter(|(_, last)| *last >= next) {
        check_entries(reader, next..last + 1, deep, &mut found)?;
    }
    check_marks(&found)?;
    Ok(found)
}

fn check_entries(
    reader: &dyn DiskReader,
    all: Range<u64>,
    deep: bool,
    found: &mut Recovered,
) -> Result<(), CheckError> {
    // The first entry is looked at in any case: a hole right after the purged part is the likeliest one.
    expect_chunk(reader, all.start..all.start + 1, found)?;
    let from = if deep { all.start } else { all.start.max(all.end.saturating_sub(FAST_ENTRIES)) };
    let mut at = from;
    while at < all.end {
        at = expect_chunk(reader, at..all.end.min(at + CHUNK_ENTRIES), found)?;
    }
    Ok(())
}

/// Reads from the start of the range; returns the index after the last record read.
fn expect_chunk(
    reader: &dyn DiskReader,
    range: Range<u64>,
    found: &mut Recovered,
) -> Result<u64, CheckError> {
    let records =
        reader.read(range.clone(), CHUNK_BYTES).map_err(bad(format!("log near entry {}", range.start)))?;
    let mut expected = range.start;
    for record in records {
        if record.mark.index != expected {
            return Err(Damage::Hole { expected }.into());
        }
        if found.last.is_some_and(|last| record.mark.term < last.term && record.mark.index > last.index) {
            return Err(Damage::TermWentBack { index: record.mark.index }.into());
        }
        found.last = found.last.max(Some(record.mark));
        found.entries_checked += 1;
        expected += 1;
    }
    if expected == range.start { Err(Damage::Hole { expected }.into()) } else { Ok(expected) }
}

fn check_marks(found: &Recovered) -> Result<(), CheckError> {
    let index = |mark: Option<LogMark>| mark.map(|mark| mark.index);
    if index(found.committed) > index(found.last) {
        let reason = format!("committed is {:?} but the log ends at {:?}", found.committed, found.last);
        return Err(Damage::Marks { reason }.into());
    }
    // A vote precedes every entry of its term on the same disk.
    let term = found.vote.map_or(0, |vote| vote.term);
    if found.last.is_some_and(|last| last.term > term) {
        let reason = format!("the log ends in {:?} but the vote is for term {term}", found.last);
        return Err(Damage::Marks { reason }.into());
    }
    Ok(())
}
