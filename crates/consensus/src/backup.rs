//! Backups of the cluster's own data: the state as of one log index, in one file that explains and proves itself.
//!
//! The bytes are [`crate::frames`] with a head of their own; the body is the state, in the state's own versioned form. An
//! older build refuses a newer head by its format number, and a newer state by its version byte.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use outlast_control::state::{ClusterState, DecodeError, decode_state, encode_state};
use outlast_types::{ClusterId, Profile, WallTime};
use serde::{Deserialize, Serialize};

use crate::clock::wall_now;
use crate::consensus::Consensus;
use crate::disk::LogMark;
use crate::frames::{self, FramesError, Magic, framed_bytes, pieces};
use crate::types::mark;

const MAGIC: Magic = *b"OLBACK\r\n";
const FORMAT: u32 = 1;
const BUFFER_BYTES: usize = 256 << 10;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    pub format: u32,
    pub cluster_id: ClusterId,
    pub profile: Profile,
    pub generation: u64,
    /// The newest entry that is in it.
    pub last: LogMark,
    /// When it was made, by the clock of the coordinator that made it.
    pub at: WallTime,
}

/// A backup that was read and verified whole.
#[derive(Clone, Debug)]
pub struct Backup {
    pub head: BackupHead,
    pub state: ClusterState,
}

/// A backup on its way to a file.
pub struct BackupBytes {
    pub head: BackupHead,
    pub size_bytes: u64,
    head_bytes: Vec<u8>,
    body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the backup cannot be read")]
    Io(#[source] io::Error),
    #[error("the backup ends early: it was cut off, or never written to its end")]
    Truncated,
    #[error("this is no backup, or a damaged one: {reason}")]
    Damaged { reason: String },
    #[error("the backup has format {found}; this build knows {FORMAT}: upgrade it")]
    Format { found: u32 },
    #[error("the state in the backup does not decode")]
    State(#[source] DecodeError),
}

impl From<FramesError> for BackupError {
    fn from(err: FramesError) -> Self {
        match err {
            FramesError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            FramesError::Io(source) => Self::Io(source),
            FramesError::Damaged(reason) => Self::Damaged { reason },
        }
    }
}

impl BackupBytes {
    fn new(head: BackupHead, body: Vec<u8>) -> Self {
        let head_bytes = rmp_serde::to_vec_named(&head).expect("writing into memory cannot fail");
        Self { size_bytes: framed_bytes(&head_bytes, &body), head, head_bytes, body }
    }

    /// The bytes of the file, in pieces of little more than 256 KiB.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        pieces(MAGIC, &self.head_bytes, &self.body)
    }
}

impl Consensus {
    /// The applied state between two entries; `None` before the cluster's first one. Holds the state's lock while it is
    /// encoded, as a snapshot does: not to be called on a thread that serves others.
    pub fn backup(&self) -> Option<BackupBytes> {
        let applied = self.inner.machine.shared.applied.read();
        let (state, last) = (&applied.state, mark(applied.last.as_ref()?));
        let config = state.config.as_ref()?;
        let head = BackupHead {
            format: FORMAT,
            cluster_id: config.cluster_id.clone(),
            profile: config.profile,
            generation: state.generation,
            last,
            at: wall_now(),
        };
        let body = encode_state(state);
        drop(applied);
        Some(BackupBytes::new(head, body))
    }
}

/// Reads a backup and verifies every byte of it.
///
/// # Errors
/// See [`BackupError`]; nothing of a damaged backup is handed out.
pub fn read_backup(path: &Path) -> Result<Backup, BackupError> {
    let file = File::open(path).map_err(BackupError::Io)?;
    read(&mut BufReader::with_capacity(BUFFER_BYTES, file))
}

fn read(input: &mut impl Read) -> Result<Backup, BackupError> {
    let bytes = frames::read_head(input, MAGIC)?;
    let damaged = |reason: String| BackupError::Damaged { reason };
    // The format is looked at first: a newer head may have keys that this build does not know.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } =
        rmp_serde::from_slice(&bytes).map_err(|err| damaged(format!("its head: {err}")))?;
    if format != FORMAT {
        return Err(BackupError::Format { found: format });
    }
    let head: BackupHead =
        rmp_serde::from_slice(&bytes).map_err(|err| damaged(format!("its head: {err}")))?;
    let state = decode_state(&frames::read_body(input, &bytes)?).map_err(BackupError::State)?;
    if state.applied != head.last.index || state.config.is_none() {
        return Err(damaged("its head and its state are of different times".to_owned()));
    }
    Ok(Backup { head, state })
}

#[cfg(test)]
mod tests {
    use outlast_control::state::{Command, Envelope};
    use outlast_types::Actor;

    use super::*;

    fn bytes() -> Vec<u8> {
        let mut state = ClusterState::new();
        let cluster_id = ClusterId::new("test").expect("valid");
        let command = Command::InitCluster {
            cluster_id: cluster_id.clone(),
            profile: Profile::Lan,
            address: "a:1".to_owned(),
        };
        let (request, source, cause) = (None, None, None);
        let envelope = Envelope { request, actor: Actor::System, source, cause, at: WallTime(1), command };
        state.apply(7, &envelope);
        let head = BackupHead {
            format: FORMAT,
            cluster_id,
            profile: Profile::Lan,
            generation: 1,
            last: LogMark { term: 2, index: 7 },
            at: WallTime(1),
        };
        let backup = BackupBytes::new(head, encode_state(&state));
        let bytes: Vec<u8> = backup.pieces().flatten().collect();
        assert_eq!(bytes.len() as u64, backup.size_bytes);
        bytes
    }

    #[test]
    fn a_backup_comes_back_whole_and_every_flipped_bit_and_every_cut_is_seen() {
        let good = bytes();
        let backup = read(&mut good.as_slice()).expect("whole");
        assert_eq!((backup.head.last.index, backup.state.applied), (7, 7));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut bad.as_slice()).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            let err = read(&mut &good[..len]).expect_err("cut");
            assert!(matches!(err, BackupError::Truncated), "cut at {len}: {err}");
        }
    }
}
