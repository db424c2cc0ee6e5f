//! What the bucket has when nobody else is left to ask: every `COMMIT` with its proof, and why the rest does not count.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use outlast_types::{AttemptId, CheckpointSeq};

use super::ObjectTier;
use super::commit::CommitRecord;
use super::keys::{COMMIT, MANIFEST, attempt_of, data_name, seq_of};
use super::request::RequestError;
use crate::manifest::Manifest;

/// Checkpoints that are looked at together; each has one listing and two small objects.
const CHECKPOINTS_AT_ONCE: usize = 8;
/// A listing answers a thousand names at a time; this many seconds' worth of bytes is its deadline's share.
const LISTING_BYTES: u64 = 16 << 20;

/// A checkpoint that the bucket vouches for: `COMMIT` is whole, `MANIFEST` is the one it names, all data is there by name
/// and size. The bytes themselves are verified when they are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    pub record: CommitRecord,
    pub manifest: Manifest,
}

/// What lies under one attempt and sequence number.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundCheckpoint {
    pub attempt: AttemptId,
    pub seq: CheckpointSeq,
    pub state: FoundState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FoundState {
    Committed(Box<Committed>),
    /// Never finished, or being removed: no `COMMIT`, or data of a rank is not there.
    Incomplete {
        reason: String,
    },
    /// Committed once, but what proves it is not what was written.
    Damaged {
        reason: String,
    },
}

/// Name → size.
type Names = BTreeMap<String, u64>;

impl ObjectTier {
    /// Every checkpoint below the URL, in order of attempt and sequence number. What does not look like ours is left out.
    ///
    /// # Errors
    /// When anything could not be read: an answer is complete or there is none.
    pub async fn list_committed(&self) -> Result<Vec<FoundCheckpoint>, RequestError> {
        let mut places = Vec::new();
        for folder in self.folders(self.keys.blobs()).await? {
            let Some(attempt) = attempt_of(&folder) else { continue };
            let seqs = self.folders(&folder).await?;
            places.extend(seqs.iter().filter_map(seq_of).map(|seq| (attempt, seq)));
        }
        let inspect = |(attempt, seq)| async move {
            let state = self.inspect(attempt, seq).await?;
            Ok::<_, RequestError>(state.map(|state| FoundCheckpoint { attempt, seq, state }))
        };
        let looks: Vec<_> = places.into_iter().map(inspect).collect();
        let found: Vec<Option<FoundCheckpoint>> =
            stream::iter(looks).buffer_unordered(CHECKPOINTS_AT_ONCE).try_collect().await?;
        let mut found: Vec<FoundCheckpoint> = found.into_iter().flatten().collect();
        found.sort_by_key(|found| {
            let AttemptId { group, generation, number } = found.attempt;
            (group, generation, number, found.seq)
        });
        Ok(found)
    }

    async fn folders(&self, under: &Path) -> Result<Vec<Path>, RequestError> {
        let list = || self.backend.objects.list_with_delimiter(Some(under));
        Ok(self.request(&format!("list {under}"), LISTING_BYTES, list).await?.common_prefixes)
    }

    /// `None` where nothing is left.
    async fn inspect(
        &self,
        attempt: AttemptId,
        seq: CheckpointSeq,
    ) -> Result<Option<FoundState>, RequestError> {
        let folder = self.keys.checkpoint(&attempt, seq);
        let list = || self.backend.objects.list_with_delimiter(Some(&folder));
        let objects = self.request(&format!("list {folder}"), LISTING_BYTES, list).await?.objects;
        let name = |path: &Path| path.filename().map(str::to_owned);
        let names: Names =
            objects.iter().filter_map(|meta| Some((name(&meta.location)?, meta.size))).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let Some(commit) = self.get_small(&folder.clone().join(COMMIT)).await? else {
            return Ok(Some(incomplete(format!("no COMMIT among its {} objects", names.len()))));
        };
        let record = match CommitRecord::decode(&commit) {
            Ok(record) => record,
            Err(err) => return Ok(Some(damaged(format!("COMMIT: {err}")))),
        };
        let Some(bytes) = self.get_small(&folder.join(MANIFEST)).await? else {
            return Ok(Some(damaged("COMMIT is there and MANIFEST is not".to_owned())));
        };
        Ok(Some(judge(attempt, seq, record, &bytes, &names)))
    }
}

fn incomplete(reason: String) -> FoundState {
    FoundState::Incomplete { reason }
}

fn damaged(reason: String) -> FoundState {
    FoundState::Damaged { reason }
}

fn judge(
    attempt: AttemptId,
    seq: CheckpointSeq,
    record: CommitRecord,
    bytes: &[u8],
    names: &Names,
) -> FoundState {
    if *blake3::hash(bytes).as_bytes() != record.manifest_root.0 {
        return damaged("MANIFEST is not the one that COMMIT names".to_owned());
    }
    let manifest = match Manifest::decode(bytes) {
        Ok(manifest) => manifest,
        Err(err) => return damaged(format!("MANIFEST: {err}")),
    };
    if (manifest.attempt, manifest.seq, manifest.job) != (attempt, seq, record.job) {
        return damaged(format!("it is of {} {}: copied here by hand?", manifest.attempt, manifest.seq));
    }
    let is_there = |rank, root, size| names.get(&data_name(rank, root)) == Some(&size);
    let missing = manifest.shards.iter().filter(|shard| !is_there(shard.rank, shard.root, shard.size_bytes));
    let missing: Vec<String> = missing.map(|shard| shard.rank.to_string()).collect();
    if !missing.is_empty() {
        return incomplete(format!("the data of rank {} is not there", missing.join(", ")));
    }
    FoundState::Committed(Box::new(Committed { record, manifest }))
}
