//! Making a sealed checkpoint be in the bucket: only over complete data, `MANIFEST` first, `COMMIT` last, neither ever
//! replaced.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Attributes, PutMode};
use outlast_failpoint::{Failpoint, reach};

use super::commit::CommitRecord;
use super::keys::{COMMIT, MANIFEST};
use super::request::RequestError;
use super::{CommitError, ObjectTier};
use crate::ShardKey;
use crate::manifest::{Manifest, ManifestError, ManifestShard};

/// Questions at a time; each is a few hundred bytes.
pub(super) const HEADS_AT_ONCE: usize = 16;
/// An object that is there for one moment and not the next is being written by somebody else.
const RACES_MAX: u32 = 3;

/// What came of it; neither is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// By this call or, with the same content, by an earlier one.
    Committed,
    /// The data of these ranks is not there yet; nothing was written.
    Incomplete { ranks: Vec<u32> },
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the manifest is not complete")]
    Manifest {
        #[source]
        source: ManifestError,
    },
    #[error("the commit record is not of this manifest")]
    Record,
    /// Somebody must look: two clusters share one prefix, or an object was damaged. Nothing was replaced.
    #[error("{path} is there already, and {reason}")]
    Conflict {
        path: String,
        reason: String,
        #[source]
        source: Option<CommitError>,
    },
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl ObjectTier {
    /// Writes `MANIFEST` and `COMMIT` if the data of all ranks is there. Call it after the seal; again is harmless.
    ///
    /// # Errors
    /// See `PublishError`.
    pub async fn publish(
        &self,
        manifest: &Manifest,
        record: &CommitRecord,
    ) -> Result<Published, PublishError> {
        manifest.check().map_err(|source| PublishError::Manifest { source })?;
        if (record.job, record.manifest_root) != (manifest.job, manifest.root()) {
            return Err(PublishError::Record);
        }
        let ranks = self.missing_ranks(manifest).await?;
        if !ranks.is_empty() {
            return Ok(Published::Incomplete { ranks });
        }
        let folder = self.keys.checkpoint(&manifest.attempt, manifest.seq);
        let bytes = manifest.encode();
        let is_ours = |there: &[u8]| match there == bytes {
            true => Ok(()),
            false => Err(("is of another checkpoint, or damaged".to_owned(), None)),
        };
        pass(Failpoint::AgentPublishBeforeManifest).await?;
        self.create(&folder.clone().join(MANIFEST), bytes.clone(), is_ours).await?;
        let is_ours = |there: &[u8]| is_same_commit(there, record);
        pass(Failpoint::AgentPublishBeforeCommit).await?;
        self.create(&folder.join(COMMIT), record.encode(), is_ours).await?;
        pass(Failpoint::AgentPublishAfterCommit).await?;
        Ok(Published::Committed)
    }

    /// Ranks whose data is not there with the right size, ascending.
    pub(super) async fn missing_ranks(&self, manifest: &Manifest) -> Result<Vec<u32>, RequestError> {
        let look = |shard: &ManifestShard| {
            let (key, shard) = (shard_key(manifest, shard), *shard);
            async move {
                let found = self.head(&self.keys.data(&key, shard.root)).await?;
                let is_there = found.is_some_and(|(meta, _)| meta.size == shard.size_bytes);
                Ok::<_, RequestError>((!is_there).then_some(shard.rank))
            }
        };
        let looks: Vec<_> = manifest.shards.iter().map(look).collect();
        let found: Vec<Option<u32>> =
            stream::iter(looks).buffer_unordered(HEADS_AT_ONCE).try_collect().await?;
        let mut ranks: Vec<u32> = found.into_iter().flatten().collect();
        ranks.sort_unstable();
        Ok(ranks)
    }

    /// Writes an object that is not there; one that is must be ours.
    async fn create(
        &self,
        path: &Path,
        bytes: Vec<u8>,
        is_ours: impl Fn(&[u8]) -> Result<(), (String, Option<CommitError>)>,
    ) -> Result<(), PublishError> {
        let mut races = 0;
        loop {
            let put = self.put(path, bytes.clone().into(), PutMode::Create, Attributes::new()).await;
            let exists = match put {
                Ok(()) => return Ok(()),
                Err(exists @ RequestError::Exists { .. }) => exists,
                Err(other) => return Err(other.into()),
            };
            // Also the end of a try of ours whose answer was lost.
            if let Some(there) = self.get_small(path).await? {
                let conflict =
                    |(reason, source)| PublishError::Conflict { path: path.to_string(), reason, source };
                return is_ours(&there).map_err(conflict);
            }
            races += 1;
            if races >= RACES_MAX {
                return Err(exists.into());
            }
        }
    }
}

/// A failpoint that fails is a store that did not answer.
pub(super) async fn pass(at: Failpoint) -> Result<(), RequestError> {
    let unanswered = |source: std::io::Error| RequestError::Transient {
        what: format!("pass {}", at.name()),
        tries: 1,
        source: source.into(),
    };
    reach(at).await.map_err(unanswered)
}

pub(super) fn shard_key(manifest: &Manifest, shard: &ManifestShard) -> ShardKey {
    ShardKey { job: manifest.job, attempt: manifest.attempt, seq: manifest.seq, rank: shard.rank }
}

/// The seal's text may differ in what does not make the checkpoint (who holds it); cluster, job and content may not.
fn is_same_commit(there: &[u8], record: &CommitRecord) -> Result<(), (String, Option<CommitError>)> {
    let found = CommitRecord::decode(there).map_err(|err| ("cannot be used".to_owned(), Some(err)))?;
    if !found.is_kin(record) {
        let reason = format!("belongs to cluster {}; give each cluster a prefix of its own", found.cluster);
        return Err((reason, None));
    }
    if (found.job, found.manifest_root) != (record.job, record.manifest_root) {
        let reason = format!("commits other bytes (manifest root {})", found.manifest_root);
        return Err((reason, None));
    }
    Ok(())
}
