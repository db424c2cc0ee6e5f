//! The index of all parts of a checkpoint, and the one place that knows its bytes and so its root.
//!
//! ```text
//!  "OLMANIF" version(u8)  job u64  group u32  generation u64  number u64  seq u64  step u64  world_size u32
//!  then per rank, ascending:  rank u32  size_bytes u64  root 32                                        (little endian)
//! ```
//! Exactly one encoding for one content, so equal manifests have equal roots on every coordinator and agent.

use outlast_types::{AttemptId, CheckpointSeq, Digest, GroupId, JobId};
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 7] = *b"OLMANIF";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 56;
const SHARD_BYTES: usize = 44;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub job: JobId,
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub step: u64,
    pub world_size: u32,
    /// One for each rank below `world_size`; their order here does not matter.
    pub shards: Vec<ManifestShard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestShard {
    pub rank: u32,
    pub root: Digest,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("not a manifest")]
    NotAManifest,
    #[error("manifest version {found}; this build reads up to {VERSION}: upgrade it first")]
    Version { found: u8 },
    #[error("the manifest ends in the middle, or goes on after its end")]
    Length,
    #[error("the manifest does not name every rank below {world_size} exactly once")]
    Ranks { world_size: u32 },
}

impl Manifest {
    /// # Errors
    /// When not every rank is there exactly once.
    pub fn check(&self) -> Result<(), ManifestError> {
        let mut ranks: Vec<u32> = self.shards.iter().map(|shard| shard.rank).collect();
        ranks.sort_unstable();
        let is_complete = ranks.into_iter().eq(0..self.world_size);
        if is_complete { Ok(()) } else { Err(ManifestError::Ranks { world_size: self.world_size }) }
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Self { job, attempt, seq, step, world_size, shards } = self;
        let AttemptId { group, generation, number } = attempt;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + shards.len() * SHARD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&job.0.to_le_bytes());
        bytes.extend_from_slice(&group.index.to_le_bytes());
        for number in [*generation, *number, seq.0, *step] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&world_size.to_le_bytes());
        let mut shards = shards.clone();
        shards.sort_unstable();
        for ManifestShard { rank, root, size_bytes } in shards {
            bytes.extend_from_slice(&rank.to_le_bytes());
            bytes.extend_from_slice(&size_bytes.to_le_bytes());
            bytes.extend_from_slice(&root.0);
        }
        bytes
    }

    /// # Errors
    /// Anything but the canonical bytes of a complete manifest. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() < 8 || bytes[..7] != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        if bytes[7] != VERSION {
            return Err(ManifestError::Version { found: bytes[7] });
        }
        let (shards, rest) =
            bytes.get(HEADER_BYTES..).ok_or(ManifestError::Length)?.as_chunks::<SHARD_BYTES>();
        if !rest.is_empty() {
            return Err(ManifestError::Length);
        }
        let job = JobId(u64_at(bytes, 8));
        let group = GroupId { job, index: u32_at(bytes, 16) };
        let manifest = Self {
            job,
            attempt: AttemptId { group, generation: u64_at(bytes, 20), number: u64_at(bytes, 28) },
            seq: CheckpointSeq(u64_at(bytes, 36)),
            step: u64_at(bytes, 44),
            world_size: u32_at(bytes, 52),
            shards: shards.iter().map(shard).collect(),
        };
        manifest.check()?;
        if manifest.encode() == bytes { Ok(manifest) } else { Err(ManifestError::NotAManifest) }
    }

    /// BLAKE3 of the canonical bytes: the name of the checkpoint's content in its seal.
    pub fn root(&self) -> Digest {
        Digest(*blake3::hash(&self.encode()).as_bytes())
    }
}

fn shard(bytes: &[u8; SHARD_BYTES]) -> ManifestShard {
    let root = Digest(*bytes.last_chunk().expect("44 bytes end with 32"));
    ManifestShard { rank: u32_at(bytes, 0), size_bytes: u64_at(bytes, 4), root }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let shard =
            |rank| ManifestShard { rank, root: Digest([rank as u8; 32]), size_bytes: 100 + u64::from(rank) };
        Manifest {
            job: JobId(12),
            attempt: "j12/0@1.3".parse().expect("valid"),
            seq: CheckpointSeq(7),
            step: 400,
            world_size: 3,
            shards: vec![shard(2), shard(0), shard(1)],
        }
    }

    #[test]
    fn the_bytes_are_canonical_and_go_there_and_back() {
        let (manifest, mut sorted) = (manifest(), manifest());
        sorted.shards.sort();
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(sorted.clone()));
        assert_eq!(sorted.root(), manifest.root());
    }

    #[test]
    fn the_root_of_version_1_never_changes() {
        // Golden: a change here breaks every seal that was ever made.
        assert_eq!(manifest().encode().len(), HEADER_BYTES + 3 * SHARD_BYTES);
        assert_eq!(
            manifest().root().to_string(),
            "ea4855a5368160eb007aecc941bd74c4cef7ef263f07bf8b3783675804452847"
        );
    }

    #[test]
    fn damaged_or_incomplete_manifests_are_refused() {
        let bytes = manifest().encode();
        for cut in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..cut]).is_err());
        }
        let mut newer = bytes.clone();
        newer[7] = 2;
        assert_eq!(Manifest::decode(&newer), Err(ManifestError::Version { found: 2 }));
        let mut twice = manifest();
        twice.shards[0].rank = 1;
        assert_eq!(Manifest::decode(&twice.encode()), Err(ManifestError::Ranks { world_size: 3 }));
    }
}
