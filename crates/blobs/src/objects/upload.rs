//! One shard into the store: by one request where it is small, else in parts that survive a restart of this process.
//!
//! ```text
//!  look ─there─► done
//!   ▲ └─not there─► extent hashes ─► one PUT, or: go on with the noted upload or begin one ─► parts ─► complete ─┐
//!   │                                               ▲ the store has forgotten the upload ◄─┤                     │
//!   └───────────────────────────────────────────────┴──────────────────────────────────────┴─────────────────────┘
//! ```

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Attribute, Attributes, PutMode, PutMultipartOptions, PutPayload};
use outlast_failpoint::Failpoint;
use outlast_types::Digest;
use parking_lot::Mutex;

use super::ObjectTier;
use super::note::{NotePlace, UploadNote};
use super::publish::pass;
use super::request::RequestError;
use crate::store::{ReadError, ShardMeta, ShardReader, ShardStore};
use crate::{ShardKey, extent::extent_count};

/// Looking, sending, looking again; and once more where the store had forgotten an upload.
const ROUNDS_MAX: u32 = 3;
/// Under this name the root lies in the object's metadata, where a store takes any. The key has it too.
const ROOT_ATTRIBUTE: &str = "outlast-root";

/// How a shard came to be in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutReport {
    pub parts: u64,
    /// Sent by this call; fewer than `parts` where an earlier upload went on, none where the object was there.
    pub parts_sent: u64,
}

/// Why a shard is not in the store. Parts that it has are remembered.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("the shard cannot be read from this node's disk")]
    Read {
        #[source]
        source: ReadError,
    },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the note of the upload cannot be written beside the shard")]
    Note {
        #[source]
        source: std::io::Error,
    },
    #[error("the upload was ended: nobody wants it any more")]
    Stopped,
    #[error("the store took {path} {ROUNDS_MAX} times and does not have it with {size_bytes} bytes")]
    NotKept { path: String, size_bytes: u64 },
}

/// What all steps of one upload need.
struct Upload<'a> {
    tier: &'a ObjectTier,
    path: Path,
    extents_path: Path,
    root: Digest,
    size_bytes: u64,
    note: NotePlace,
    reader: Arc<Mutex<ShardReader>>,
    part_bytes: u64,
    is_wanted: &'a (dyn Fn() -> bool + Send + Sync),
}

impl ObjectTier {
    /// Puts a shard of this node's disk into the store, verified as it is read. Again: nothing is sent twice. Dropped in
    /// the middle, or after an error, a later call goes on.
    ///
    /// # Errors
    /// See `PutError`.
    pub async fn put_shard(&self, store: &ShardStore, shard: &ShardMeta) -> Result<PutReport, PutError> {
        self.put_shard_while(store, shard, &|| true).await
    }

    /// Like `put_shard`, and ends between two requests as soon as `is_wanted` says no. Of an upload in parts
    /// nothing can be seen then, now or later.
    ///
    /// # Errors
    /// `Stopped`, or see `PutError`.
    pub async fn put_shard_while(
        &self,
        store: &ShardStore,
        shard: &ShardMeta,
        is_wanted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<PutReport, PutError> {
        let upload = Upload::open(self, store, shard, is_wanted).await?;
        let mut report = PutReport { parts: upload.part_count().max(1), parts_sent: 0 };
        for _ in 0..ROUNDS_MAX {
            if upload.is_there().await? {
                upload.forget().await?;
                return Ok(report);
            }
            match upload.send(&mut report.parts_sent).await {
                Ok(()) => {}
                // Completed by a try whose answer was lost, or ended by somebody else: the next look tells.
                Err(PutError::Request(RequestError::Missing { what })) => {
                    tracing::debug!(store = %self.url, what, "the store does not know this upload");
                    upload.forget().await?;
                }
                Err(other) => return Err(other),
            }
        }
        Err(PutError::NotKept { path: upload.path.to_string(), size_bytes: upload.size_bytes })
    }

    /// Ends the upload that a shard's note tells of, so that its parts cost nothing any more. For shards that are about to
    /// be removed from this node; where the store cannot be reached, the bucket's lifecycle rule does it.
    pub async fn abandon(&self, store: &ShardStore, key: &ShardKey, root: Digest) {
        let note = NotePlace { store: store.clone(), key: *key, root };
        if let Some(found) = blocking({
            let note = note.clone();
            move || note.load()
        })
        .await
        {
            self.end(&found).await;
        }
        if let Err(error) = blocking(move || note.remove()).await {
            tracing::warn!(%error, path = self.key_of(key, root), "the note of an upload stays beside its shard");
        }
    }

    /// Best effort: what stays is the lifecycle rule's.
    async fn end(&self, note: &UploadNote) {
        let Some(parts) = self.backend.parts.as_ref().filter(|_| note.is_of(&self.url.to_string())) else {
            return;
        };
        let (path, id) = (Path::from(note.path.as_str()), &note.upload_id);
        let ended = self.request("end an upload", 0, || parts.abort_multipart(&path, id)).await;
        match ended {
            Ok(()) | Err(RequestError::Missing { .. }) => {}
            Err(error) => tracing::warn!(%error, %path, "an unfinished upload stays in the store"),
        }
    }
}

impl<'a> Upload<'a> {
    async fn open(
        tier: &'a ObjectTier,
        store: &ShardStore,
        shard: &ShardMeta,
        is_wanted: &'a (dyn Fn() -> bool + Send + Sync),
    ) -> Result<Self, PutError> {
        let note = NotePlace { store: store.clone(), key: shard.key, root: shard.root };
        let opened = blocking({
            let note = note.clone();
            move || note.store.open_shard(&note.key, note.root)
        })
        .await;
        let reader = opened.map_err(|source| PutError::Read { source })?;
        let size_bytes = reader.size_bytes();
        Ok(Self {
            tier,
            path: tier.keys.data(&shard.key, shard.root),
            extents_path: tier.keys.extents(&shard.key, shard.root),
            root: shard.root,
            size_bytes,
            note,
            part_bytes: tier.limits.part_bytes(size_bytes, reader.extent_bytes()),
            reader: Arc::new(Mutex::new(reader)),
            is_wanted,
        })
    }

    fn check_wanted(&self) -> Result<(), PutError> {
        if (self.is_wanted)() { Ok(()) } else { Err(PutError::Stopped) }
    }

    fn part_count(&self) -> u64 {
        self.size_bytes.div_ceil(self.part_bytes)
    }

    fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        if self.tier.backend.has_attributes {
            attributes.insert(Attribute::Metadata(ROOT_ATTRIBUTE.into()), self.root.to_string().into());
        }
        attributes
    }

    async fn is_there(&self) -> Result<bool, PutError> {
        let Some((meta, attributes)) = self.tier.head(&self.path).await? else { return Ok(false) };
        let told = attributes.get(&Attribute::Metadata(ROOT_ATTRIBUTE.into()));
        Ok(meta.size == self.size_bytes && told.is_none_or(|told| **told == *self.root.to_string()))
    }

    /// An upload that was not needed any more is ended; then the note goes.
    async fn forget(&self) -> Result<(), PutError> {
        if let Some(found) = self.load_note().await {
            self.tier.end(&found).await;
        }
        let note = self.note.clone();
        blocking(move || note.remove()).await.map_err(|source| PutError::Note { source })
    }

    async fn load_note(&self) -> Option<UploadNote> {
        let note = self.note.clone();
        blocking(move || note.load()).await
    }

    async fn send(&self, parts_sent: &mut u64) -> Result<(), PutError> {
        pass(Failpoint::AgentPublishBeforeData).await?;
        let outboard = {
            let reader = self.reader.lock();
            let has_many = extent_count(self.size_bytes, reader.extent_bytes()) > 1;
            has_many.then(|| reader.outboard_bytes())
        };
        // Before the bytes: where those are, their hashes are.
        if let Some(bytes) = outboard {
            self.tier.put(&self.extents_path, bytes.into(), PutMode::Overwrite, Attributes::new()).await?;
        }
        if self.part_count() <= 1 {
            return self.send_whole(parts_sent).await;
        }
        match &self.tier.backend.parts {
            Some(store) => self.send_parts(store.as_ref(), parts_sent).await,
            None => self.send_stream(parts_sent).await,
        }
    }

    async fn send_whole(&self, parts_sent: &mut u64) -> Result<(), PutError> {
        let (payload, _held) = self.read_part(0).await?;
        self.tier.put(&self.path, payload, PutMode::Overwrite, self.attributes()).await?;
        *parts_sent += 1;
        Ok(())
    }

    async fn send_parts(&self, store: &dyn MultipartStore, parts_sent: &mut u64) -> Result<(), PutError> {
        let note = self.begin_or_go_on(store).await?;
        let id = note.upload_id.clone();
        let left: Vec<u64> = (0..self.part_count()).filter(|part| !note.parts.contains_key(part)).collect();
        let (note, before) = (tokio::sync::Mutex::new(note), *parts_sent);
        let sent = stream::iter(left)
            .map(|part| self.send_part(store, &id, part, &note))
            .buffer_unordered(self.tier.limits.parts_at_once.max(1))
            .try_for_each(|()| {
                *parts_sent += 1;
                std::future::ready(Ok(()))
            })
            .await;
        let mut note = note.into_inner();
        let completed = match sent {
            Ok(()) => self.complete(store, &note).await,
            failed => failed,
        };
        if matches!(completed, Err(PutError::Request(_))) && *parts_sent == before {
            note.call_failed();
            self.save_note(&note).await?;
        }
        completed
    }

    /// The noted upload where it can go on; any other is ended.
    async fn begin_or_go_on(&self, store: &dyn MultipartStore) -> Result<UploadNote, PutError> {
        let url = self.tier.url.to_string();
        if let Some(found) = self.load_note().await.filter(|note| note.is_of(&url)) {
            if found.is_usable(self.path.as_ref(), self.part_bytes) {
                return Ok(found);
            }
            self.tier.end(&found).await;
        }
        let begin = || {
            let options =
                PutMultipartOptions { attributes: self.attributes(), ..PutMultipartOptions::default() };
            store.create_multipart_opts(&self.path, options)
        };
        let id = self.tier.request(&format!("begin an upload of {}", self.path), 0, begin).await;
        let id = id.map_err(RequestError::no_bucket)?;
        let note = UploadNote::new(url, self.path.to_string(), id, self.part_bytes);
        self.save_note(&note).await?;
        Ok(note)
    }

    /// Holds its place in the pool only while its own bytes are in memory.
    async fn send_part(
        &self,
        store: &dyn MultipartStore,
        id: &String,
        part: u64,
        note: &tokio::sync::Mutex<UploadNote>,
    ) -> Result<(), PutError> {
        let (payload, held) = self.read_part(part).await?;
        let (what, bytes) = (format!("write part {part} of {}", self.path), payload.content_length() as u64);
        let index = usize::try_from(part).expect("parts are few");
        let put = || store.put_part(&self.path, id, index, payload.clone());
        let taken = self.tier.request(&what, bytes, put).await?;
        drop((payload, held));
        let mut note = note.lock().await;
        note.part_is_there(part, taken.content_id);
        self.save_note(&note).await
    }

    async fn complete(&self, store: &dyn MultipartStore, note: &UploadNote) -> Result<(), PutError> {
        self.check_wanted()?;
        let (what, id) = (format!("complete the upload of {}", self.path), &note.upload_id);
        let parts: Vec<PartId> =
            note.parts.values().map(|name| PartId { content_id: name.clone() }).collect();
        let complete = || store.complete_multipart(&self.path, id, parts.clone());
        self.tier.request(&what, 0, complete).await?;
        let place = self.note.clone();
        blocking(move || place.remove()).await.map_err(|source| PutError::Note { source })
    }

    async fn save_note(&self, note: &UploadNote) -> Result<(), PutError> {
        let (place, note) = (self.note.clone(), note.clone());
        blocking(move || place.save(&note)).await.map_err(|source| PutError::Note { source })
    }

    /// For a folder: its parts cannot be told apart later, so this begins at the beginning.
    async fn send_stream(&self, parts_sent: &mut u64) -> Result<(), PutError> {
        let tier = self.tier;
        let begin = tier.backend.objects.put_multipart_opts(&self.path, PutMultipartOptions::default());
        let mut upload = tier.request_once("begin a file", 0, begin).await?;
        let sent = async {
            for part in 0..self.part_count() {
                let (payload, _held) = self.read_part(part).await?;
                let bytes = payload.content_length() as u64;
                tier.request_once("write a file", bytes, upload.put_part(payload)).await?;
                *parts_sent += 1;
            }
            tier.request_once("complete a file", self.size_bytes, upload.complete()).await?;
            Ok(())
        }
        .await;
        if sent.is_err() {
            // Only space is lost where this fails too.
            let _ = upload.abort().await;
        }
        sent
    }

    /// The verified bytes of a part, and its place in the pool.
    async fn read_part(
        &self,
        part: u64,
    ) -> Result<(PutPayload, tokio::sync::OwnedSemaphorePermit), PutError> {
        self.check_wanted()?;
        let (at, reader) = (part * self.part_bytes, self.reader.clone());
        let bytes = self.part_bytes.min(self.size_bytes - at);
        let pool = self.tier.uploading.clone();
        let held = pool.acquire_many_owned(self.tier.limits.part_kib(bytes)).await.expect("never closed");
        let read = blocking(move || read_extents(&mut reader.lock(), at, bytes)).await;
        let extents = read.map_err(|source| PutError::Read { source })?;
        Ok((extents.into_iter().collect(), held))
    }
}

fn read_extents(reader: &mut ShardReader, at: u64, bytes: u64) -> Result<Vec<Bytes>, ReadError> {
    reader.seek_extent(at / reader.extent_bytes());
    let mut extents = Vec::new();
    for _ in 0..extent_count(bytes, reader.extent_bytes()) {
        extents.extend(reader.next_extent()?.map(Bytes::copy_from_slice));
    }
    Ok(extents)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}
