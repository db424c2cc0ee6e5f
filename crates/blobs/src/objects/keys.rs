//! The exact names of objects; the layout of the shard store, below a prefix.

use object_store::path::Path;
use outlast_types::{AttemptId, CheckpointSeq, Digest};

use crate::store::{ShardKey, parse_attempt};

pub(super) const MANIFEST: &str = "MANIFEST";
pub(super) const COMMIT: &str = "COMMIT";

#[derive(Clone)]
pub(super) struct Keys {
    blobs: Path,
    bundles: Path,
}

impl Keys {
    pub(super) fn new(prefix: Path) -> Self {
        Self { blobs: prefix.clone().join("blobs"), bundles: prefix.join("bundles") }
    }

    pub(super) fn blobs(&self) -> &Path {
        &self.blobs
    }

    pub(super) fn bundle(&self, digest: Digest) -> Path {
        self.bundles.clone().join(digest.to_string())
    }

    pub(super) fn checkpoint(&self, attempt: &AttemptId, seq: CheckpointSeq) -> Path {
        self.blobs.clone().join(attempt.file_name()).join(seq.to_string())
    }

    pub(super) fn data(&self, key: &ShardKey, root: Digest) -> Path {
        self.checkpoint(&key.attempt, key.seq).join(data_name(key.rank, root))
    }

    pub(super) fn extents(&self, key: &ShardKey, root: Digest) -> Path {
        self.checkpoint(&key.attempt, key.seq).join(format!("{}.ext", data_name(key.rank, root)))
    }
}

pub(super) fn data_name(rank: u32, root: Digest) -> String {
    format!("{rank}-{root}")
}

/// The attempt of a folder's path; strangers are ignored.
pub(super) fn attempt_of(path: &Path) -> Option<AttemptId> {
    parse_attempt(path.filename()?)
}

pub(super) fn seq_of(path: &Path) -> Option<CheckpointSeq> {
    let name = path.filename()?;
    let seq: CheckpointSeq = name.parse().ok()?;
    (seq.to_string() == name).then_some(seq)
}
