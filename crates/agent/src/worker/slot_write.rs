//! From a slot to the shard store: in pieces, so that the agent's memory does not grow with a checkpoint.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use outlast_blobs::{ShardKey, ShardMeta, ShardStore, WriteError};
use outlast_staging::DATA_AT;

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
    let mut writer = store.begin(Some(length))?;
    // Read once: what a worker scribbles over it afterwards is neither written nor hashed.
    let mut bytes = SlotBytes { slot, at: DATA_AT };
    let came = writer.take_from(&mut bytes, length).map_err(|err| full_or_io(err, length))?;
    if came < length {
        let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the slot's file was cut short");
        return Err(WriteError::Io { source });
    }
    writer.finish(key)
}

/// Its cursor is its own: the file has many users.
struct SlotBytes<'a> {
    slot: &'a File,
    at: u64,
}

impl Read for SlotBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.slot.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn full_or_io(source: io::Error, wanted_bytes: u64) -> WriteError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            WriteError::Full { wanted_bytes, free_bytes: 0 }
        }
        _ => WriteError::Io { source },
    }
}

#[cfg(test)]
mod tests {
    use outlast_types::{CheckpointSeq, JobId};

    use super::*;

    #[test]
    fn a_slot_becomes_a_shard_and_one_that_is_cut_short_becomes_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(dir.path()).expect("a store");
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n * 31 % 251) as u8).collect();
        let slot = tempfile::tempfile().expect("a slot");
        slot.write_all_at(&bytes, DATA_AT).expect("filled");
        let attempt = "j1/0@1.1".parse().expect("valid");
        let key = ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(1), rank: 0 };
        let length = bytes.len() as u64;
        let meta = write_patiently(&store, &key, &slot, length).expect("written");
        let mut back = Vec::new();
        store.open_shard(&key, meta.root).expect("there").read_to_end(&mut back).expect("sound");
        assert!(back == bytes, "the same bytes");

        slot.set_len(DATA_AT + length - 1).expect("cut");
        let other = ShardKey { seq: CheckpointSeq(2), ..key };
        let refused = write_patiently(&store, &other, &slot, length).expect_err("refused");
        assert!(matches!(refused, WriteError::Io { .. }), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0, "nothing is left");
        assert_eq!(store.list(), [meta]);
    }
}
