//! The exact name of a shard, and what is known of one that is there.

use std::path::PathBuf;

use outlast_types::{AttemptId, CheckpointSeq, Digest, JobId};
use serde::{Deserialize, Serialize};

/// One rank's part of one checkpoint. With its root it names bytes; `job` is the job of `attempt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardKey {
    pub job: JobId,
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub rank: u32,
}

/// A whole shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    pub key: ShardKey,
    /// BLAKE3 of the bytes.
    pub root: Digest,
    pub size_bytes: u64,
    /// BLAKE3 chaining values of the extents, in order; they merge to the root.
    pub extents: Vec<[u8; 32]>,
    /// The seal lies beside the bytes.
    pub sealed: bool,
}

impl ShardKey {
    /// Below `blobs/`.
    pub(super) fn path(&self, root: Digest) -> PathBuf {
        let folder = PathBuf::from(self.attempt.file_name()).join(self.seq.to_string());
        folder.join(format!("{}-{root}", self.rank))
    }
}

/// The inverse of `AttemptId::file_name`.
pub(crate) fn parse_attempt(name: &str) -> Option<AttemptId> {
    let mut fields = name.splitn(4, '.');
    let (job, group, generation, number) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let attempt: AttemptId = format!("{job}/{group}@{generation}.{number}").parse().ok()?;
    (attempt.file_name() == name).then_some(attempt)
}

/// Rank and root of a data file's name; `None` for its companions.
pub(super) fn parse_file(name: &str) -> Option<(u32, Digest)> {
    let (rank, root) = name.split_once('-')?;
    let (rank, root): (u32, Digest) = (rank.parse().ok()?, root.parse().ok()?);
    (format!("{rank}-{root}") == name).then_some((rank, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back_and_strangers_are_ignored() {
        let attempt = "j12/0@1.3".parse().expect("valid");
        let key = ShardKey { job: JobId(12), attempt, seq: CheckpointSeq(7), rank: 4 };
        let path = key.path(Digest([0xab; 32]));
        let names: Vec<_> = path.iter().map(|name| name.to_str().expect("text")).collect();
        assert_eq!(names[..2], ["j12.0.1.3", "ck7"]);
        assert_eq!(
            (parse_attempt(names[0]), parse_file(names[2])),
            (Some(attempt), Some((4, Digest([0xab; 32]))))
        );
        for stranger in
            ["j12.0.1.3.4", "j12.0.1", "x", "j012.0.1.3", "4-abc", "4", &format!("{}.ext", names[2])]
        {
            assert!(parse_attempt(stranger).is_none() && parse_file(stranger).is_none(), "{stranger}");
        }
    }
}
