//! One shard out of the store: ranges in parallel, each extent verified as it comes, in order into one sink.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use futures::{StreamExt, stream};
use object_store::GetOptions;
use object_store::path::Path;
use outlast_types::Digest;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::ObjectTier;
use super::request::RequestError;
use super::upload::blocking;
use crate::ShardKey;
use crate::bundle::{BundleError, BundleStore};
use crate::extent::{EXTENT_BYTES, ExtentHasher, extent_count, extent_hash};
use crate::outboard::Outboard;
use crate::store::{ShardMeta, ShardStore, WriteError};

/// A range whose bytes are wrong may have been damaged on the way; wrong again, it is so in the store.
const CORRUPT_TRIES_MAX: u32 = 2;

/// Why a shard, or a bundle, did not come. What a caller does next differs: other holder; other holder; try again; tell an operator;
/// look to the own disk.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The extent, where one can be named.
    #[error("the bytes in the object store are not the ones that were put there")]
    Corrupt { extent: Option<u64> },
    #[error("the object store does not have it")]
    Missing,
    #[error("the object store cannot be read now")]
    Transient {
        #[source]
        source: RequestError,
    },
    #[error("the object store does not let this node read it")]
    Refused {
        #[source]
        source: RequestError,
    },
    #[error("the shard from the object store could not be written to this node's disk")]
    Write {
        #[source]
        source: WriteError,
    },
    #[error("{reason}")]
    Late { reason: String },
    #[error("the bundle from the object store could not be kept on this node's disk")]
    Keep {
        #[source]
        source: BundleError,
    },
}

impl From<RequestError> for GetError {
    fn from(source: RequestError) -> Self {
        match source {
            RequestError::Missing { .. } => Self::Missing,
            RequestError::Transient { .. } => Self::Transient { source },
            RequestError::Refused { .. } | RequestError::Exists { .. } => Self::Refused { source },
        }
    }
}

/// A range in memory, with its place in the pool.
type Fetched = (Bytes, OwnedSemaphorePermit);

/// An object that has the right size.
struct Source<'a> {
    tier: &'a ObjectTier,
    path: Path,
    size_bytes: u64,
    range_bytes: u64,
    /// Without it only the whole can be verified.
    outboard: Option<Outboard>,
}

impl ObjectTier {
    /// Brings a shard to this node's disk. Only the sealed bytes ever get its name there. `drop_late` is asked once it is
    /// there, also where nobody waits for this call any more: it removes what nobody wants, and says why.
    ///
    /// # Errors
    /// See `GetError`; nothing of the shard is left then.
    pub async fn get_shard(
        &self,
        store: &ShardStore,
        key: &ShardKey,
        root: Digest,
        size_bytes: u64,
        drop_late: impl FnOnce(&ShardMeta) -> Option<String> + Send + 'static,
    ) -> Result<ShardMeta, GetError> {
        let (store, to) = (store.clone(), *key);
        let source = Source::open(self, key, root, size_bytes).await?;
        let keep = move |queue| {
            let meta = write(&store, queue, &to, root, size_bytes)?;
            drop_late(&meta).map_or(Ok(meta), |reason| Err(GetError::Late { reason }))
        };
        self.stream(source, keep).await
    }

    /// Reads every byte of a shard in the store.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn verify_shard(&self, key: &ShardKey, root: Digest, size_bytes: u64) -> Result<(), GetError> {
        let source = Source::open(self, key, root, size_bytes).await?;
        self.stream(source, move |queue| check(queue, root, size_bytes)).await
    }

    /// Only looks whether a shard is in the store, in its size.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn look(&self, key: &ShardKey, root: Digest, size_bytes: u64) -> Result<(), GetError> {
        Source::whole(self, self.keys.data(key, root), size_bytes).await.map(drop)
    }

    /// A shard's ranges in order, for somebody who verifies the whole; those that have extent hashes are verified before.
    /// One is fetched when the one before it was taken, so a slow receiver keeps no downloads of others from their memory.
    /// Ends with the receiver.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn read_shard(
        &self,
        key: &ShardKey,
        root: Digest,
        size_bytes: u64,
        ranges: &mpsc::Sender<Result<Bytes, GetError>>,
    ) -> Result<(), GetError> {
        let source = Source::open(self, key, root, size_bytes).await?;
        for range in 0..size_bytes.div_ceil(source.range_bytes) {
            let Ok(room) = ranges.reserve().await else { break };
            let fetched = tokio::select! {
                fetched = source.fetch(range) => fetched,
                () = ranges.closed() => break,
            };
            let (bytes, held) = fetched?;
            drop(held);
            room.send(Ok(bytes));
        }
        Ok(())
    }

    /// Brings a job's bundle to this node's disk, where it is kept only if it is what its digest says.
    ///
    /// # Errors
    /// See `GetError`; nothing of the bundle is left then.
    pub async fn get_bundle(
        &self,
        store: &BundleStore,
        digest: Digest,
        size_bytes: u64,
    ) -> Result<(), GetError> {
        let source = Source::whole(self, self.keys.bundle(digest), size_bytes).await?;
        let store = store.clone();
        self.stream(source, move |queue| keep(&store, queue, digest, size_bytes)).await
    }

    /// An answer to "is it there" has no body, and a bucket that is not there looks like an object that is not. Only the
    /// object's absence may be told as `Missing`.
    async fn missing(&self, path: &Path) -> Result<GetError, RequestError> {
        let list = || self.backend.objects.list_with_delimiter(Some(path));
        let listed = self.request(&format!("list {path}"), 0, list).await;
        listed.map_err(RequestError::no_bucket).map(|_| GetError::Missing)
    }

    /// The extent hashes of a shard. One that comes in a single range is proven by its root, like one of a single extent.
    async fn outboard(
        &self,
        key: &ShardKey,
        root: Digest,
        size_bytes: u64,
    ) -> Result<Option<Outboard>, RequestError> {
        let range_bytes = self.limits.part_bytes_min.max(1);
        if (1..=range_bytes).contains(&size_bytes) {
            return Ok(Some(Outboard { extent_bytes: range_bytes, size_bytes, root, extents: vec![root.0] }));
        }
        let bytes = self.get_small(&self.keys.extents(key, root)).await?;
        let outboard = bytes.and_then(|bytes| Outboard::decode(&bytes));
        Ok(outboard.filter(|found| found.root == root && found.size_bytes == size_bytes))
    }

    /// The ranges go to `sink` in order, on a blocking thread. If one cannot be had, the queue just ends early.
    async fn stream<T: Send + 'static>(
        &self,
        source: Source<'_>,
        sink: impl FnOnce(mpsc::Receiver<Fetched>) -> Result<T, GetError> + Send + 'static,
    ) -> Result<T, GetError> {
        let size_bytes = source.size_bytes;
        // As many as the pool can hold: the queue is never full, so that ranges under way are never left waiting, with
        // their deadlines running, for a slow disk.
        let ranges = self.limits.pool_kib() / self.limits.part_kib(source.range_bytes.min(size_bytes)) + 1;
        let (sender, queue) = mpsc::channel(ranges as usize);
        let sunk = blocking(move || sink(queue));
        let fetched = async move {
            let mut ranges = stream::iter(0..size_bytes.div_ceil(source.range_bytes))
                .map(|range| source.fetch(range))
                .buffered(self.limits.parts_at_once.max(1));
            while let Some(range) = ranges.next().await {
                // The sink has failed and says why.
                if sender.send(range?).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let (sunk, fetched) = futures::join!(sunk, fetched);
        fetched.and(sunk)
    }
}

impl<'a> Source<'a> {
    async fn open(
        tier: &'a ObjectTier,
        key: &ShardKey,
        root: Digest,
        size_bytes: u64,
    ) -> Result<Self, GetError> {
        let mut source = Self::whole(tier, tier.keys.data(key, root), size_bytes).await?;
        if let Some(outboard) = tier.outboard(key, root, size_bytes).await? {
            source.range_bytes = source.range_bytes.div_ceil(outboard.extent_bytes) * outboard.extent_bytes;
            source.outboard = Some(outboard);
        }
        Ok(source)
    }

    /// An object without extent hashes: its sink verifies the whole of it.
    async fn whole(tier: &'a ObjectTier, path: Path, size_bytes: u64) -> Result<Self, GetError> {
        let Some((meta, _)) = tier.head(&path).await? else { return Err(tier.missing(&path).await?) };
        if meta.size != size_bytes {
            return Err(GetError::Corrupt { extent: None });
        }
        Ok(Self { tier, path, size_bytes, range_bytes: tier.limits.part_bytes_min.max(1), outboard: None })
    }

    async fn fetch(&self, range: u64) -> Result<Fetched, GetError> {
        let at = range * self.range_bytes;
        let len = self.range_bytes.min(self.size_bytes - at);
        let pool = self.tier.downloading.clone();
        let held = pool.acquire_many_owned(self.tier.limits.part_kib(len)).await.expect("never closed");
        let mut tries = 1;
        loop {
            let bytes = self.ask(at, len).await?;
            match self.verify(at, bytes).await {
                Ok(bytes) => return Ok((bytes, held)),
                Err(extent) if tries >= CORRUPT_TRIES_MAX => {
                    return Err(GetError::Corrupt { extent: Some(extent) });
                }
                Err(extent) => {
                    tracing::warn!(path = %self.path, extent, "wrong bytes came; asking once more")
                }
            }
            tries += 1;
        }
    }

    async fn ask(&self, at: u64, len: u64) -> Result<Bytes, RequestError> {
        let ask = || async {
            let options = GetOptions { range: Some((at..at + len).into()), ..GetOptions::default() };
            let bytes = self.tier.backend.objects.get_opts(&self.path, options).await?.bytes().await?;
            if bytes.len() as u64 == len { Ok(bytes) } else { Err(short(len, bytes.len())) }
        };
        self.tier.request(&format!("read {} from byte {at}", self.path), len, ask).await
    }

    /// The first extent that is wrong.
    async fn verify(&self, at: u64, bytes: Bytes) -> Result<Bytes, u64> {
        let Some(outboard) = &self.outboard else { return Ok(bytes) };
        let (extent_bytes, count) = (outboard.extent_bytes, outboard.extents.len() as u64);
        let first = at / extent_bytes;
        let here = extent_count(bytes.len() as u64, extent_bytes);
        let wanted: Vec<[u8; 32]> =
            (first..first + here).filter_map(|index| outboard.extents.get(index as usize).copied()).collect();
        blocking(move || {
            let pieces = bytes.chunks(extent_bytes as usize).zip(&wanted).zip(first..);
            let wrong = pieces
                .map(|((piece, wanted), index)| {
                    (index, extent_hash(index, count, extent_bytes, piece) == *wanted)
                })
                .find(|(_, is_right)| !is_right);
            wrong.map_or(Ok(bytes.clone()), |(index, _)| Err(index))
        })
        .await
    }
}

/// Worth another try: the connection may have been cut without saying so.
fn short(wanted: u64, came: usize) -> object_store::Error {
    let source = format!("{wanted} bytes were asked for and {came} came").into();
    object_store::Error::Generic { store: "outlast", source }
}

fn write(
    store: &ShardStore,
    mut queue: mpsc::Receiver<Fetched>,
    key: &ShardKey,
    root: Digest,
    size_bytes: u64,
) -> Result<ShardMeta, GetError> {
    let failed = |source| GetError::Write { source };
    let mut writer = store.begin(Some(size_bytes)).map_err(failed)?;
    while let Some((bytes, _held)) = queue.blocking_recv() {
        writer.write_all(&bytes).map_err(|err| failed(store.classify(err, size_bytes)))?;
    }
    writer.finish_as(key, root, size_bytes).map_err(|source| match source {
        WriteError::Mismatch { .. } => GetError::Corrupt { extent: None },
        source => failed(source),
    })
}

/// The queue as a stream of bytes. One that ends early has the wrong digest.
struct QueueReader {
    queue: mpsc::Receiver<Fetched>,
    current: Option<Fetched>,
}

impl Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.as_ref().is_none_or(|(bytes, _)| bytes.is_empty()) {
            match self.queue.blocking_recv() {
                Some(range) => self.current = Some(range),
                None => return Ok(0),
            }
        }
        let Some((bytes, _held)) = &mut self.current else { return Ok(0) };
        let count = bytes.len().min(buffer.len());
        bytes.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn keep(
    store: &BundleStore,
    queue: mpsc::Receiver<Fetched>,
    digest: Digest,
    size_bytes: u64,
) -> Result<(), GetError> {
    let reader = QueueReader { queue, current: None };
    store.put(reader, Some(digest), size_bytes).map(drop).map_err(|source| match source {
        BundleError::Mismatch { .. } => GetError::Corrupt { extent: None },
        source => GetError::Keep { source },
    })
}

fn check(mut queue: mpsc::Receiver<Fetched>, root: Digest, size_bytes: u64) -> Result<(), GetError> {
    let mut hasher = ExtentHasher::new(EXTENT_BYTES);
    let mut came_bytes = 0;
    while let Some((bytes, _held)) = queue.blocking_recv() {
        hasher.update(&bytes);
        came_bytes += bytes.len() as u64;
    }
    let is_right = (hasher.finish().0, came_bytes) == (root, size_bytes);
    if is_right { Ok(()) } else { Err(GetError::Corrupt { extent: None }) }
}
