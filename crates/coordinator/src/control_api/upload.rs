//! A bundle on its way from a client into a file: hashed as it comes, bounded in bytes, between two messages and as a
//! whole. Few are received at a time, so one that trickles for ever would keep the others out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::Digest;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use super::rejected;

/// Of one bundle as an archive: everything that the client may pack. What is bigger belongs into storage of its own.
const BUNDLE_BYTES_MAX: u64 = outlast_blobs::PackLimits::BUNDLE_ARCHIVE_BYTES;
/// Between two messages of the client.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);
/// What an upload gets beside the time for its bytes.
const UPLOAD_GRACE: Duration = Duration::from_secs(60);
/// Bytes a second at the least: about 1 Mbit/s, which a bad mobile connection gives. The largest bundle has some half an
/// hour.
const UPLOAD_RATE_MIN: u64 = 128 << 10;

/// What one upload is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UploadLimits {
    size_bytes: u64,
    idle: Duration,
    whole: Duration,
}

impl UploadLimits {
    /// For as many bytes as the client said; 0: it said nothing.
    pub(super) fn of(named_bytes: u64) -> Result<Self, Failure> {
        if named_bytes > BUNDLE_BYTES_MAX {
            return Err(too_large(named_bytes));
        }
        let size_bytes = if named_bytes == 0 { BUNDLE_BYTES_MAX } else { named_bytes };
        let whole = UPLOAD_GRACE + Duration::from_secs(size_bytes / UPLOAD_RATE_MIN);
        Ok(Self { size_bytes, idle: CHUNK_DEADLINE, whole })
    }

    fn exceeded_by(&self, received: u64) -> Failure {
        if received > BUNDLE_BYTES_MAX {
            return too_large(received);
        }
        rejected(
            format!("the upload has more than the {} bytes that it named", self.size_bytes),
            "the bundle changed while it was sent: send it again",
        )
    }

    fn too_slow(&self) -> Failure {
        rejected(
            format!(
                "the upload took longer than the {} s that its {} bytes are given (at least {} KiB a second)",
                self.whole.as_secs(),
                self.size_bytes,
                UPLOAD_RATE_MIN >> 10
            ),
            "send it over a faster connection, or leave data out of it with .outlastignore",
        )
    }
}

/// A received bundle on its way; the file goes when this does.
pub(super) struct Received {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
}

pub(super) struct Spool(pub(super) PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        // The folder is emptied at the next start if this fails.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn too_large(size: u64) -> Failure {
    rejected(
        format!("the bundle has {size} bytes; at most {BUNDLE_BYTES_MAX} are taken"),
        "leave data out of it with .outlastignore",
    )
}

/// The messages of one upload.
type Chunk = Result<pb::UploadBundleRequest, Status>;

/// The first message.
pub(super) async fn head(
    chunks: &mut (impl Stream<Item = Chunk> + Unpin),
) -> Result<pb::UploadBundleRequest, Failure> {
    let first = next_chunk(chunks, CHUNK_DEADLINE).await?;
    first.ok_or_else(|| rejected("an empty upload", "send the bundle"))
}

async fn next_chunk(
    chunks: &mut (impl Stream<Item = Chunk> + Unpin),
    idle: Duration,
) -> Result<Option<pb::UploadBundleRequest>, Failure> {
    match tokio::time::timeout(idle, chunks.next()).await {
        Ok(next) => next.transpose().map_err(|status| Failure::from_status(&status)),
        Err(_) => Err(rejected(
            format!("the upload stopped in the middle: nothing came for {} s", idle.as_secs()),
            "send it again",
        )),
    }
}

pub(super) fn disk_failure(error: std::io::Error) -> Failure {
    Failure::Exhausted {
        reason: format!("the bundle could not be stored on the way: {error}"),
        hint: "make room in the coordinator's data folder, or upload through another coordinator".to_owned(),
        retry_after_ms: 1_000,
    }
}

/// Writes the chunks to the file, within the limits.
pub(super) async fn receive(
    path: &Path,
    head: pb::UploadBundleRequest,
    chunks: &mut (impl Stream<Item = Chunk> + Unpin),
    limits: UploadLimits,
) -> Result<Received, Failure> {
    let received = tokio::time::timeout(limits.whole, receive_all(path, head, chunks, limits)).await;
    received.unwrap_or_else(|_| Err(limits.too_slow()))
}

/// Hashes the chunks as they come.
async fn receive_all(
    path: &Path,
    head: pb::UploadBundleRequest,
    chunks: &mut (impl Stream<Item = Chunk> + Unpin),
    limits: UploadLimits,
) -> Result<Received, Failure> {
    let mut file = File::create(path).await.map_err(disk_failure)?;
    let mut hasher = blake3::Hasher::new();
    let mut size_bytes = 0u64;
    let mut next = Some(head);
    while let Some(message) = next {
        size_bytes += message.chunk.len() as u64;
        if size_bytes > limits.size_bytes {
            return Err(limits.exceeded_by(size_bytes));
        }
        hasher.update(&message.chunk);
        file.write_all(&message.chunk).await.map_err(disk_failure)?;
        next = next_chunk(chunks, limits.idle).await?;
    }
    file.flush().await.map_err(disk_failure)?;
    Ok(Received { path: path.to_owned(), digest: Digest(*hasher.finalize().as_bytes()), size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte() -> pb::UploadBundleRequest {
        pb::UploadBundleRequest { chunk: vec![7], ..pb::UploadBundleRequest::default() }
    }

    /// A byte now and then, for ever.
    fn trickle() -> impl Stream<Item = Chunk> + Unpin {
        Box::pin(futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok(byte()), ()))
        }))
    }

    async fn receive_into_a_folder(
        chunks: &mut (impl Stream<Item = Chunk> + Unpin),
        limits: UploadLimits,
    ) -> Result<u64, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let received = receive(&folder.path().join("upload"), byte(), chunks, limits).await;
        received.map(|received| received.size_bytes)
    }

    #[test]
    fn the_time_of_an_upload_follows_from_its_size() {
        let seconds = |bytes| UploadLimits::of(bytes).map(|limits| limits.whole.as_secs());
        assert_eq!(seconds(1), Ok(60));
        assert_eq!(seconds(128 << 20), Ok(60 + 1_024));
        assert_eq!(seconds(0), seconds(BUNDLE_BYTES_MAX), "nothing was said: as much as there may be");
        assert!(matches!(seconds(BUNDLE_BYTES_MAX + 1), Err(Failure::Rejected { .. })));
    }

    #[tokio::test]
    async fn an_upload_that_trickles_for_ever_ends_with_a_word() {
        let limits = UploadLimits {
            size_bytes: BUNDLE_BYTES_MAX,
            idle: Duration::from_secs(60),
            whole: Duration::from_millis(50),
        };
        let failure = receive_into_a_folder(&mut trickle(), limits).await.expect_err("too slow");
        assert!(failure.to_string().contains("took longer than the 0 s"), "{failure}");
        assert!(failure.hint().contains(".outlastignore"), "{failure:?}");
    }

    #[tokio::test]
    async fn an_upload_that_stops_in_the_middle_ends_too() {
        let limits = UploadLimits { idle: Duration::from_millis(5), ..UploadLimits::of(10).expect("small") };
        let mut silent = futures::stream::pending();
        let failure = receive_into_a_folder(&mut silent, limits).await.expect_err("it stopped");
        assert!(failure.to_string().contains("stopped in the middle"), "{failure}");
    }

    #[tokio::test]
    async fn an_upload_has_the_bytes_that_it_named_and_no_more() {
        let limits = UploadLimits::of(3).expect("small");
        let bytes = |count| futures::stream::iter(std::iter::repeat_with(|| Ok(byte())).take(count));
        assert_eq!(receive_into_a_folder(&mut bytes(2), limits).await, Ok(3));
        let failure = receive_into_a_folder(&mut bytes(3), limits).await.expect_err("one more");
        assert!(failure.to_string().contains("more than the 3 bytes"), "{failure}");
    }
}
