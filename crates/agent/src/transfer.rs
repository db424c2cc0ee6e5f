//! Bytes between the network (async) and the disk (blocking): a bounded queue of chunks in each direction.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use outlast_blobs::{BundleStore, ReadError, ShardKey, ShardMeta, ShardReader, ShardStore, WriteError};
use outlast_failpoint::{Failpoint, hit};
use outlast_types::Digest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Sent in one message.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Taken in one message: chunks of others may be larger.
pub(crate) const MESSAGE_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Chunks between disk and network: enough to keep both busy, 4 MiB a transfer.
const CHUNKS_MAX: usize = 16;

/// Why received bytes were not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("the bytes are not those that were announced: {0}")]
    Mismatch(String),
    #[error("{0}")]
    Write(String),
    /// Their checkpoint was over when they were whole; they are gone.
    #[error("{0}")]
    Late(String),
}

/// Bytes that are being received. Dropped before `finish`, nothing of them stays.
pub(crate) struct Incoming<T> {
    chunks: mpsc::Sender<Option<Bytes>>,
    writer: JoinHandle<Result<T, ReceiveError>>,
}

impl<T: Send + 'static> Incoming<T> {
    fn begin(write: impl FnOnce(ChunkReader) -> Result<T, ReceiveError> + Send + 'static) -> Self {
        let (chunks, queue) = mpsc::channel(CHUNKS_MAX);
        let reader = ChunkReader { queue, current: Bytes::new(), is_whole: false };
        Self { chunks, writer: tokio::task::spawn_blocking(move || write(reader)) }
    }

    /// Whether more is taken; where it is not, `finish` says why.
    pub(crate) async fn push(&self, chunk: Bytes) -> bool {
        self.chunks.send(Some(chunk)).await.is_ok()
    }

    /// Every byte was pushed. Answers when they are verified and durable.
    pub(crate) async fn finish(self) -> Result<T, ReceiveError> {
        let _ = self.chunks.send(None).await;
        self.writer.await.expect("the writer does not panic")
    }
}

/// Receives a shard; anything but the announced bytes is refused. `drop_late` looks whether anybody wants it still, once it
/// is whole: here, since whoever sent or asked for it may have gone by then.
pub(crate) fn receive_shard(
    store: &ShardStore,
    key: ShardKey,
    root: Digest,
    size_bytes: u64,
    drop_late: impl FnOnce(&ShardMeta) -> Option<String> + Send + 'static,
) -> Incoming<ShardMeta> {
    let store = store.clone();
    Incoming::begin(move |mut reader| {
        let failed = |err: &dyn std::error::Error| ReceiveError::Write(chain(err));
        let mut writer = store.begin(Some(size_bytes)).map_err(|err| failed(&err))?;
        // One more than announced is enough to see that it is too much.
        writer.take_from(&mut reader, size_bytes.saturating_add(1)).map_err(|err| failed(&err))?;
        hit(Failpoint::AgentReplicateBeforeFsync).map_err(|err| failed(&err))?;
        let received = writer.finish_as(&key, root, size_bytes).map_err(|err| match err {
            WriteError::Mismatch { .. } => ReceiveError::Mismatch(err.to_string()),
            other => failed(&other),
        });
        hit(Failpoint::AgentReplicateAfterFsync).map_err(|err| failed(&err))?;
        let received = received?;
        match drop_late(&received) {
            None => Ok(received),
            Some(why) => Err(ReceiveError::Late(why)),
        }
    })
}

/// Receives a bundle; anything but the announced content is refused.
pub(crate) fn receive_bundle(store: &BundleStore, digest: Digest, size_bytes: u64) -> Incoming<()> {
    let store = store.clone();
    Incoming::begin(move |reader| match store.put(reader, Some(digest), size_bytes) {
        Ok(_) => Ok(()),
        Err(
            err @ (outlast_blobs::BundleError::Mismatch { .. } | outlast_blobs::BundleError::TooLarge { .. }),
        ) => Err(ReceiveError::Mismatch(chain(&err))),
        Err(err) => Err(ReceiveError::Write(chain(&err))),
    })
}

struct ChunkReader {
    queue: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    is_whole: bool,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.is_whole {
            match self.queue.blocking_recv() {
                Some(Some(chunk)) => self.current = chunk,
                Some(None) => self.is_whole = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the sender went away")),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Reads in chunks on a blocking thread. An error is the last item. Of a shard no byte comes before its extent is verified.
pub(crate) fn read_chunks<R: Read + Send + 'static>(mut source: R) -> mpsc::Receiver<io::Result<Bytes>> {
    let chunks = std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        let read = (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
        read.map(|count| (count > 0).then(|| Bytes::from(chunk))).transpose()
    });
    deal(chunks, 1).remove(0)
}

/// A shard's bytes for so many receivers, which get one chunk each in turn. They verify what they get.
pub(crate) fn deal_chunks(shard: ShardReader, receivers: u32) -> Vec<mpsc::Receiver<io::Result<Bytes>>> {
    deal(shard.into_pieces().flat_map(|piece| chunks_of(piece.map(Bytes::from))), receivers as usize)
}

pub(crate) fn chunks_of(piece: Result<Bytes, ReadError>) -> Vec<io::Result<Bytes>> {
    let mut piece = match piece {
        Ok(piece) => piece,
        Err(err) => return vec![Err(err.into())],
    };
    let mut chunks = Vec::new();
    while !piece.is_empty() {
        chunks.push(Ok(piece.split_to(piece.len().min(CHUNK_BYTES))));
    }
    chunks
}

fn deal(
    mut chunks: impl Iterator<Item = io::Result<Bytes>> + Send + 'static,
    receivers: usize,
) -> Vec<mpsc::Receiver<io::Result<Bytes>>> {
    let queues = (0..receivers).map(|_| mpsc::channel((CHUNKS_MAX / receivers).max(1)));
    let (senders, receivers): (Vec<_>, Vec<_>) = queues.unzip();
    tokio::task::spawn_blocking(move || {
        for sender in senders.iter().cycle() {
            let Some(chunk) = chunks.next() else { return };
            let is_last = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    receivers
}

/// An error with all its causes, for records that people read where no log is at hand.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shard_that_is_whole_too_late_goes_although_nobody_waits_for_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(folder.path()).expect("a store");
        let attempt = "j1/0@1.1".parse().expect("an id");
        let key =
            ShardKey { job: outlast_types::JobId(1), attempt, seq: outlast_types::CheckpointSeq(1), rank: 0 };
        let bytes = Bytes::from_static(b"weights");
        let root = Digest(*blake3::hash(&bytes).as_bytes());
        let (said, removed) = std::sync::mpsc::channel();
        let (of, meta_root) = (store.clone(), root);
        let drop_late = move |meta: &ShardMeta| {
            of.remove(&meta.key, meta_root).expect("removed");
            said.send(of.list().len()).expect("somebody waits");
            Some("it was given up".to_owned())
        };
        let incoming = receive_shard(&store, key, root, bytes.len() as u64, drop_late);
        assert!(incoming.push(bytes).await);
        // The sender's last word arrives, and then its call is dropped.
        incoming.chunks.send(None).await.expect("the writer runs");
        drop(incoming);
        let left =
            tokio::task::spawn_blocking(move || removed.recv_timeout(std::time::Duration::from_secs(60)));
        assert_eq!(left.await.expect("no panic").expect("it was looked at"), 0);
    }
}
