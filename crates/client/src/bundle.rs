//! The upload of a bundle: streamed from its file, begun again at another coordinator when it stalls.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, Stream};
use outlast_proto::control::v1::{UploadBundleRequest, UploadBundleResponse};
use outlast_types::Digest;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use tonic::Status;

use crate::backoff::Backoff;
use crate::error::Verdict;
use crate::pool::Endpoint;
use crate::{Client, ClientError, Tried};

/// The proto allows 1 MiB a message; half of it keeps the progress bar lively.
const CHUNK: usize = 512 << 10;
/// No byte taken for this long, or no answer this long after the last byte: two nodes have to fsync it meanwhile.
const STALL: Duration = Duration::from_secs(20);
const TRIES_MIN: usize = 2;
/// A bound beside the patience.
const TRIES_MAX: usize = 200;

/// A bundle that lies in a file.
#[derive(Clone, Debug)]
pub struct BundleFile {
    pub path: PathBuf,
    pub digest: Digest,
    pub size_bytes: u64,
}

/// What the sending stream and the one who watches it share.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    failed: Mutex<Option<std::io::Error>>,
}

impl Client {
    /// Stores the bundle in the cluster; `on_progress` gets the number of bytes taken so far, and starts anew with each try.
    ///
    /// # Errors
    /// The file cannot be read, the cluster refuses it, or no coordinator took it in time.
    pub async fn upload_bundle(
        &self,
        bundle: &BundleFile,
        on_progress: impl Fn(u64),
    ) -> Result<UploadBundleResponse, ClientError> {
        let started_at = Instant::now();
        let mut backoff = Backoff::new();
        let mut reasons = BTreeMap::new();
        let mut hint_seen = String::new();
        for turn in 0..TRIES_MAX {
            let endpoint = self.pool.pick(turn)?;
            let status = match self.upload_to(&endpoint, bundle, &on_progress).await? {
                Ok(response) => {
                    self.pool.prefer(&endpoint.url);
                    return Ok(response);
                }
                Err(status) => status,
            };
            let (why, retry_after_ms) = match Verdict::from(&status) {
                Verdict::Final(error) => return Err(error),
                Verdict::Again { why, hint, retry_after_ms, .. } => {
                    hint_seen = hint;
                    (why, retry_after_ms)
                }
                Verdict::Broken { why } => (why, 0),
            };
            reasons.insert(endpoint.url, why);
            // One that stalled used up more than the patience: another one still gets its chance.
            if turn + 1 >= TRIES_MIN && started_at.elapsed() > self.timeout {
                break;
            }
            tokio::time::sleep(backoff.pause(retry_after_ms)).await;
        }
        let tried = reasons.into_iter().map(|(endpoint, why)| Tried { endpoint, why }).collect();
        let waited = started_at.elapsed();
        Err(ClientError::Unreachable { tried, waited, answered: false, hint: hint_seen })
    }

    async fn upload_to(
        &self,
        endpoint: &Endpoint,
        bundle: &BundleFile,
        on_progress: &impl Fn(u64),
    ) -> Result<Result<UploadBundleResponse, Status>, ClientError> {
        let unreadable = |source| ClientError::Bundle { path: bundle.path.clone(), source };
        let file = tokio::fs::File::open(&bundle.path).await.map_err(unreadable)?;
        let progress = Arc::new(Progress::default());
        let mut stub = endpoint.client();
        let upload = stub.upload_bundle(chunks(file, bundle, Arc::clone(&progress)));
        tokio::pin!(upload);
        let mut moved = (Instant::now(), 0);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                answer = &mut upload => {
                    let failed = progress.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return match failed {
                        Some(source) => Err(unreadable(source)),
                        None => Ok(answer.map(tonic::Response::into_inner)),
                    };
                }
                _ = tick.tick() => {
                    let sent = progress.sent.load(Ordering::Relaxed);
                    if sent != moved.1 {
                        moved = (Instant::now(), sent);
                        on_progress(sent);
                    } else if moved.0.elapsed() > STALL {
                        return Ok(Err(Status::unavailable(format!("the upload stalled after {sent} bytes"))));
                    }
                }
            }
        }
    }
}

/// The file as messages; the first one names the digest and has no bytes, so that a known bundle is not sent again.
fn chunks(
    file: tokio::fs::File,
    bundle: &BundleFile,
    progress: Arc<Progress>,
) -> impl Stream<Item = UploadBundleRequest> + Send + 'static + use<> {
    let head = UploadBundleRequest {
        chunk: Vec::new(),
        digest: bundle.digest.to_string(),
        size_bytes: bundle.size_bytes,
    };
    let body = stream::unfold((file, progress), |(mut file, progress)| async move {
        let mut chunk = vec![0; CHUNK];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(read) => {
                chunk.truncate(read);
                progress.sent.fetch_add(read as u64, Ordering::Relaxed);
                let message = UploadBundleRequest { chunk, digest: String::new(), size_bytes: 0 };
                Some((message, (file, progress)))
            }
            Err(error) => {
                *progress.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        }
    });
    futures::StreamExt::chain(stream::iter([head]), body)
}
