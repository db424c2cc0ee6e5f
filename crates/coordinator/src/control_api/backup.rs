//! The cluster's own data, streamed out as the bytes of one file.

use std::time::Duration;

use outlast_consensus::BackupBytes;
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::{ControlHandler, exhausted};

/// Pieces that wait for a slow reader; each has some 256 KiB.
const PIECES_MAX: usize = 4;
/// A reader that takes nothing for so long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

type Piece = Result<pb::BackupClusterResponse, Status>;

impl ControlHandler {
    /// As of a moment after the call: whatever was acknowledged before it is in the backup.
    pub(crate) async fn backup_cluster(&self) -> Result<mpsc::Receiver<Piece>, Failure> {
        let member = self.seat.member()?;
        let permit = self.backups.clone().try_acquire_owned();
        let permit = permit.map_err(|_| exhausted("as many backups are being made here as may be"))?;
        member.confirm_read().await?;
        let consensus = member.consensus.clone();
        let made = outlast_host::blocking(move || consensus.backup()).await;
        let made = made.map_err(|error| Failure::Fatal { reason: format!("no backup was made: {error}") })?;
        let backup = made.ok_or_else(crate::seat::no_cluster)?;
        tracing::info!(
            index = backup.head.last.index,
            bytes = backup.size_bytes,
            "backup of the cluster's data"
        );
        let (pieces, stream) = mpsc::channel(PIECES_MAX);
        tokio::spawn(send(backup, pieces, permit));
        Ok(stream)
    }
}

async fn send(backup: BackupBytes, pieces: mpsc::Sender<Piece>, _permit: OwnedSemaphorePermit) {
    let mut next = pb::BackupClusterResponse {
        size_bytes: backup.size_bytes,
        cluster_id: backup.head.cluster_id.to_string(),
        generation: backup.head.generation,
        index: backup.head.last.index,
        ..pb::BackupClusterResponse::default()
    };
    for chunk in backup.pieces() {
        next.chunk = chunk;
        let piece = Ok(std::mem::take(&mut next));
        // Whoever left needs no more.
        if !matches!(tokio::time::timeout(SEND_DEADLINE, pieces.send(piece)).await, Ok(Ok(()))) {
            return;
        }
    }
}
