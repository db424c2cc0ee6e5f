//! From a slot to the shard store: in pieces, so that the agent's memory does not grow with a checkpoint.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use outlast_blobs::{ShardKey, ShardMeta, ShardStore, WriteError};
use outlast_staging::DATA_AT;

/// Read at a time: the agent's memory does not grow with a checkpoint.
const READ_BYTES: usize = 1 << 20;
/// The bytes are still in memory, so a disk that failed once is asked once more, with a new file.
const WRITE_TRIES: u32 = 2;

/// Blocks on the disk.
///
/// # Errors
/// What the disk says, also the second time.
pub(super) fn write_patiently(
    store: &ShardStore,
    key: &ShardKey,
    slot: &File,
    length: u64,
) -> Result<ShardMeta, WriteError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match write(store, key, slot, length) {
            Err(err @ (WriteError::Sync { .. } | WriteError::Io { .. })) if tries < WRITE_TRIES => {
                tracing::error!(checkpoint = %key.seq, error = %err, "the disk failed; the bytes are written again to a new file");
            }
            written => return written,
        }
    }
}

fn write(store: &ShardStore, key: &ShardKey, slot: &File, length: u64) -> Result<ShardMeta, WriteError> {
    let io = |source| WriteError::Io { source };
    let mut writer = store.begin(Some(length))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < length {
        let count = READ_BYTES.min(usize::try_from(length - at).unwrap_or(READ_BYTES));
        slot.read_exact_at(&mut buffer[..count], DATA_AT + at).map_err(io)?;
        writer.write_all(&buffer[..count]).map_err(|err| full_or_io(err, length))?;
        at += count as u64;
    }
    writer.finish(key)
}

fn full_or_io(source: io::Error, wanted_bytes: u64) -> WriteError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            WriteError::Full { wanted_bytes, free_bytes: 0 }
        }
        _ => WriteError::Io { source },
    }
}
