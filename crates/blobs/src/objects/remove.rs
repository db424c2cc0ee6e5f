//! Removing a checkpoint from the bucket: exact keys only, and the sentence that it exists goes first.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::ObjectTier;
use super::commit::CommitRecord;
use super::keys::{COMMIT, MANIFEST};
use super::publish::{HEADS_AT_ONCE, shard_key};
use super::request::RequestError;
use crate::manifest::Manifest;

/// Why a checkpoint is still in the bucket, as a whole or in part.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Somebody must look; nothing was removed. Where it is ambiguous whose bytes they are, they stay.
    #[error("{path} is not of this checkpoint and cluster, so nothing was removed")]
    Conflict { path: String },
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl ObjectTier {
    /// Removes what `put_shard` and `publish` wrote for this manifest, and nothing else. Only for what the log retired or
    /// aborted. What is not there is fine, so the call can be repeated after an error. `record` is the own seal: another
    /// cluster that shares the prefix may have equal keys.
    ///
    /// # Errors
    /// When it is somebody else's, or when the store refuses or is away; then nothing later in the order was touched.
    pub async fn remove(&self, manifest: &Manifest, record: &CommitRecord) -> Result<(), RemoveError> {
        let folder = self.keys.checkpoint(&manifest.attempt, manifest.seq);
        let (commit, index) = (folder.clone().join(COMMIT), folder.join(MANIFEST));
        let is_ours = |found: &[u8]| {
            CommitRecord::decode(found)
                .is_ok_and(|found| found.is_kin(record) && found.manifest_root == manifest.root())
        };
        self.check(&commit, is_ours).await?;
        self.check(&index, |found| found == manifest.encode()).await?;
        self.remove_object(commit).await?;
        self.remove_object(index).await?;
        let data = manifest.shards.iter().flat_map(|shard| {
            let key = shard_key(manifest, shard);
            [self.keys.data(&key, shard.root), self.keys.extents(&key, shard.root)]
        });
        let removals: Vec<_> = data.map(|path| self.remove_object(path)).collect();
        Ok(stream::iter(removals).buffer_unordered(HEADS_AT_ONCE).try_collect().await?)
    }

    async fn check(&self, path: &Path, is_ours: impl Fn(&[u8]) -> bool) -> Result<(), RemoveError> {
        match self.get_small(path).await? {
            Some(found) if !is_ours(&found) => Err(RemoveError::Conflict { path: path.to_string() }),
            _ => Ok(()),
        }
    }

    async fn remove_object(&self, path: Path) -> Result<(), RequestError> {
        let removed = self.request(&format!("remove {path}"), 0, || self.backend.objects.delete(&path)).await;
        match removed {
            Err(RequestError::Missing { .. }) => Ok(()),
            other => other,
        }
    }
}
