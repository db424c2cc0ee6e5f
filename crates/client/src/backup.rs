//! The cluster's own data, as it comes. A stream that breaks is not taken up again: the next one is of another moment.

use std::time::Duration;

use outlast_proto::control::v1::{BackupClusterRequest, BackupClusterResponse};
use tonic::Streaming;

use crate::budget::Budget;
use crate::{Client, ClientError};

/// Between two pieces of a backup.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// A backup that is being received; see [`BackupStream::next`].
pub struct BackupStream {
    pieces: Streaming<BackupClusterResponse>,
    url: String,
}

impl Client {
    /// Asks for a backup of the cluster's data as of now.
    ///
    /// # Errors
    /// No coordinator could make one in time.
    pub async fn backup_cluster(&self) -> Result<BackupStream, ClientError> {
        // One at a time: a backup is dear, and a second one beside it of no use.
        let budget = Budget { hedge: None, each: self.timeout, ..Budget::stream(self.timeout) };
        let answer = self
            .ask(budget, BackupClusterRequest {}, |mut stub, request| {
                Box::pin(async move { stub.backup_cluster(request).await })
            })
            .await?;
        Ok(BackupStream { pieces: answer.value, url: answer.endpoint.url })
    }
}

impl BackupStream {
    /// The next piece of the file; the first one says what the whole is. `None` when nothing more comes.
    ///
    /// # Errors
    /// The stream broke, or stood still for too long.
    pub async fn next(&mut self) -> Result<Option<BackupClusterResponse>, ClientError> {
        let broken = |why: String| ClientError::Failed {
            reason: format!("the backup from {} broke off: {why}", self.url),
        };
        match tokio::time::timeout(PIECE_TIMEOUT, self.pieces.message()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(status)) => Err(broken(status.message().to_owned())),
            Err(_) => Err(broken(format!("nothing came for {} s", PIECE_TIMEOUT.as_secs()))),
        }
    }
}
