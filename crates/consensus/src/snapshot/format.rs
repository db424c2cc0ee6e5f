//! The bytes of a snapshot file.
//!
//! ```text
//! magic 8 | head length u32 | crc32c of head u32 | head (MessagePack)
//! frame:   length u32 (1 ..= 256 KiB) | crc32c u32 | bytes        ... as often as needed
//! trailer: 0 u32 | frames u64 | body bytes u64 | BLAKE3 of head and body, 32 bytes
//! ```
//! A reader of this version refuses other formats by the head's number; the body carries the state's own version.

use std::io::{self, Read, Write};

use openraft::{BasicNode, SnapshotMeta};
use outlast_types::ClusterId;
use serde::{Deserialize, Serialize};

use crate::types::{LogId, StoredMembership};

const MAGIC: &[u8; 8] = b"OLSNAP\r\n";
const FORMAT: u32 = 1;
const FRAME_BYTES_MAX: usize = 256 << 10;
/// A membership of five coordinators needs less than a kilobyte.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// Beyond the memory that a coordinator may use; a wrong length must not make it allocate.
pub(crate) const BODY_BYTES_MAX: u64 = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot ends early or cannot be read")]
    Io(#[from] io::Error),
    #[error("this is no snapshot: {reason}")]
    Damaged { reason: String },
    #[error("the snapshot has format {found}; this build knows {FORMAT}: upgrade it")]
    Format { found: u32 },
    #[error("the snapshot is of cluster {found}, this coordinator belongs to {expected}")]
    WrongCluster { found: ClusterId, expected: ClusterId },
    #[error("the state in the snapshot does not decode")]
    State(#[source] outlast_control::state::DecodeError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) format: u32,
    pub(crate) cluster_id: ClusterId,
    pub(crate) last_log: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl SnapshotHead {
    pub(crate) fn new(cluster_id: ClusterId, last_log: Option<LogId>, membership: StoredMembership) -> Self {
        Self { format: FORMAT, cluster_id, last_log, membership }
    }

    /// `snap-<term>-<index>`, which also names it to openraft.
    pub(crate) fn file_name(&self) -> String {
        let (term, index) = self.last_log.map_or((0, 0), |id| (id.leader_id.term, id.index));
        format!("snap-{term}-{index}")
    }

    pub(crate) fn meta(&self) -> SnapshotMeta<u64, BasicNode> {
        SnapshotMeta {
            last_log_id: self.last_log,
            last_membership: self.membership.clone(),
            snapshot_id: self.file_name(),
        }
    }
}

pub(crate) fn write_snapshot(out: &mut impl Write, head: &SnapshotHead, body: &[u8]) -> io::Result<()> {
    let head = rmp_serde::to_vec_named(head).expect("writing into memory cannot fail");
    out.write_all(MAGIC)?;
    out.write_all(&(head.len() as u32).to_le_bytes())?;
    out.write_all(&crc32c::crc32c(&head).to_le_bytes())?;
    out.write_all(&head)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(body);
    for frame in body.chunks(FRAME_BYTES_MAX) {
        out.write_all(&(frame.len() as u32).to_le_bytes())?;
        out.write_all(&crc32c::crc32c(frame).to_le_bytes())?;
        out.write_all(frame)?;
    }
    out.write_all(&0_u32.to_le_bytes())?;
    out.write_all(&(body.len().div_ceil(FRAME_BYTES_MAX) as u64).to_le_bytes())?;
    out.write_all(&(body.len() as u64).to_le_bytes())?;
    out.write_all(hasher.finalize().as_bytes())
}

fn damaged(reason: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged { reason: reason.into() }
}

fn u32_of(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
}

fn u64_of(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
}

fn read_head(input: &mut impl Read) -> Result<(SnapshotHead, Vec<u8>), SnapshotError> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic)?;
    let len = u32_of(input)? as usize;
    let crc = u32_of(input)?;
    if &magic != MAGIC || len > HEAD_BYTES_MAX {
        return Err(damaged("its first bytes are wrong"));
    }
    let mut bytes = vec![0; len];
    input.read_exact(&mut bytes)?;
    if crc32c::crc32c(&bytes) != crc {
        return Err(damaged("the checksum of its head does not match"));
    }
    let head: SnapshotHead =
        rmp_serde::from_slice(&bytes).map_err(|err| damaged(format!("its head: {err}")))?;
    if head.format != FORMAT {
        return Err(SnapshotError::Format { found: head.format });
    }
    Ok((head, bytes))
}

/// Reads and verifies all of it: every frame, the trailer, and that nothing follows.
///
/// # Errors
/// Nothing of a damaged snapshot is handed out.
pub(crate) fn read_snapshot(input: &mut impl Read) -> Result<(SnapshotHead, Vec<u8>), SnapshotError> {
    let (head, head_bytes) = read_head(input)?;
    let mut body = Vec::new();
    let mut frames = 0_u64;
    loop {
        let len = u32_of(input)? as usize;
        if len == 0 {
            break;
        }
        if len > FRAME_BYTES_MAX || (body.len() + len) as u64 > BODY_BYTES_MAX {
            return Err(damaged(format!("frame {frames} is too long")));
        }
        let crc = u32_of(input)?;
        let from = body.len();
        body.resize(from + len, 0);
        input.read_exact(&mut body[from..])?;
        if crc32c::crc32c(&body[from..]) != crc {
            return Err(damaged(format!("the checksum of frame {frames} does not match")));
        }
        frames += 1;
    }
    let (frames_said, bytes_said) = (u64_of(input)?, u64_of(input)?);
    let mut hash = [0; 32];
    input.read_exact(&mut hash)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head_bytes).update(&body);
    if frames_said != frames
        || bytes_said != body.len() as u64
        || hasher.finalize() != blake3::Hash::from_bytes(hash)
    {
        return Err(damaged("its trailer does not match"));
    }
    if input.read(&mut [0])? != 0 {
        return Err(damaged("bytes follow its end"));
    }
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> SnapshotHead {
        SnapshotHead::new(ClusterId::new("test").expect("valid"), None, StoredMembership::default())
    }

    #[test]
    fn a_snapshot_comes_back_whole_and_any_damage_is_seen() {
        let body: Vec<u8> = (0..600_000_u32).map(|i| (i / 7) as u8).collect();
        let mut file = Vec::new();
        write_snapshot(&mut file, &head(), &body).expect("memory");
        assert_eq!(read_snapshot(&mut file.as_slice()).expect("whole"), (head(), body));
        for at in (0..file.len()).step_by(9_973).chain(file.len() - 40..file.len()) {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(read_snapshot(&mut bad.as_slice()).is_err(), "byte {at}");
        }
        for len in [0, 7, 100, file.len() - 1] {
            assert!(read_snapshot(&mut &file[..len]).is_err(), "cut at {len}");
        }
        file.push(0);
        assert!(read_snapshot(&mut file.as_slice()).is_err(), "bytes after the end");
    }
}
