//! A job's bundle into the store: content under its own digest, so that whoever writes it writes the same.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Attributes, PutMode, PutMultipartOptions, PutPayload};
use outlast_types::Digest;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::ObjectTier;
use super::request::RequestError;
use super::upload::blocking;
use crate::bundle::{BundleError, BundleReader, BundleStore};

/// Why a bundle is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum PutBundleError {
    #[error("the bundle cannot be read from this node's disk")]
    Read {
        #[source]
        source: BundleError,
    },
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl ObjectTier {
    /// Whether the store has a bundle, by name and size. Its bytes are verified when they are read.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn has_bundle(&self, digest: Digest, size_bytes: u64) -> Result<bool, RequestError> {
        let found = self.head(&self.keys.bundle(digest)).await?;
        Ok(found.is_some_and(|(meta, _)| meta.size == size_bytes))
    }

    /// Puts a bundle of this node's disk into the store, unless it is there. A bundle is small, so one that was cut off
    /// is sent again as a whole.
    ///
    /// # Errors
    /// See `PutBundleError`.
    pub async fn put_bundle(&self, store: &BundleStore, digest: Digest) -> Result<(), PutBundleError> {
        let store = store.clone();
        // Verified whole when it is opened.
        let opened = blocking(move || store.open_bundle(&digest)).await;
        let reader = opened.map_err(|source| PutBundleError::Read { source })?;
        let (size_bytes, path) = (reader.size_bytes(), self.keys.bundle(digest));
        let found = self.head(&path).await?;
        if found.as_ref().is_some_and(|(meta, _)| meta.size == size_bytes) {
            return Ok(());
        }
        let reader = Arc::new(Mutex::new(reader));
        if size_bytes > self.limits.part_bytes_min {
            return self.stream_bundle(&path, reader, size_bytes).await;
        }
        // Of another size it is none of ours, whoever left it there.
        let mode = if found.is_none() { PutMode::Create } else { PutMode::Overwrite };
        let (bytes, _held) = self.next_part(reader, size_bytes).await?;
        match self.put(&path, PutPayload::from(bytes), mode, Attributes::new()).await {
            Ok(()) | Err(RequestError::Exists { .. }) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }

    async fn stream_bundle(
        &self,
        path: &Path,
        reader: Arc<Mutex<BundleReader>>,
        size_bytes: u64,
    ) -> Result<(), PutBundleError> {
        let begin = self.backend.objects.put_multipart_opts(path, PutMultipartOptions::default());
        let mut upload = self.request_once("begin a bundle", 0, begin).await?;
        let sent = async {
            let mut left_bytes = size_bytes;
            while left_bytes > 0 {
                let (bytes, _held) = self.next_part(Arc::clone(&reader), left_bytes).await?;
                let count = bytes.len() as u64;
                self.request_once("write a bundle", count, upload.put_part(bytes.into())).await?;
                left_bytes -= count;
            }
            self.request_once("complete a bundle", size_bytes, upload.complete()).await?;
            Ok(())
        }
        .await;
        if sent.is_err() {
            // Only space is lost where this fails too; the bucket's lifecycle rule gives it back.
            let _ = upload.abort().await;
        }
        sent
    }

    /// The next bytes of a bundle, and their place in the pool.
    async fn next_part(
        &self,
        reader: Arc<Mutex<BundleReader>>,
        left_bytes: u64,
    ) -> Result<(Bytes, OwnedSemaphorePermit), PutBundleError> {
        let count = left_bytes.min(self.limits.part_bytes_min.max(1));
        let pool = self.uploading.clone();
        let held = pool.acquire_many_owned(self.limits.part_kib(count)).await.expect("never closed");
        let read = blocking(move || {
            let mut bytes = vec![0; usize::try_from(count).map_err(io::Error::other)?];
            reader.lock().read_exact(&mut bytes).map(|()| bytes)
        });
        let bytes =
            read.await.map_err(|source| PutBundleError::Read { source: BundleError::Source { source } })?;
        Ok((bytes.into(), held))
    }
}
