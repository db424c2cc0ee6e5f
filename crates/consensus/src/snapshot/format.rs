//! The bytes of a snapshot file: [`crate::frames`] with this head. A reader of this version refuses other formats by the
//! head's number; the body carries the state's own version.

use std::io::{self, Read, Write};

use openraft::{BasicNode, SnapshotMeta};
use outlast_types::ClusterId;
use serde::{Deserialize, Serialize};

use crate::frames::{FramesError, Magic, pieces, read_body, read_head};
use crate::types::{LogId, StoredMembership};

const MAGIC: Magic = *b"OLSNAP\r\n";
const FORMAT: u32 = 1;

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
    pieces(MAGIC, &head, body).try_for_each(|piece| out.write_all(&piece))
}

impl From<FramesError> for SnapshotError {
    fn from(err: FramesError) -> Self {
        match err {
            FramesError::Io(source) => Self::Io(source),
            FramesError::Damaged(reason) => Self::Damaged { reason },
        }
    }
}

/// Reads and verifies all of it: every frame, the trailer, and that nothing follows.
///
/// # Errors
/// Nothing of a damaged snapshot is handed out.
pub(crate) fn read_snapshot(input: &mut impl Read) -> Result<(SnapshotHead, Vec<u8>), SnapshotError> {
    let bytes = read_head(input, MAGIC)?;
    let head: SnapshotHead = rmp_serde::from_slice(&bytes)
        .map_err(|err| SnapshotError::Damaged { reason: format!("its head: {err}") })?;
    if head.format != FORMAT {
        return Err(SnapshotError::Format { found: head.format });
    }
    Ok((head, read_body(input, &bytes)?))
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
