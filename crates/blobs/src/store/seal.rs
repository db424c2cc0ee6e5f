//! The seal beside the bytes: from it, a cluster whose coordinators are all gone can be rebuilt from its agents.

use std::fs;
use std::io;
use std::path::PathBuf;

use outlast_types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ReadError, ShardKey, ShardStore, with_suffix};
use crate::files;

/// Bumped when an old reader could not make sense of a new note.
const SEAL_VERSION: u32 = 1;

/// What the log said when it sealed a shard's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealNote {
    /// The root that was sealed for this rank.
    pub root: Digest,
    /// The checkpoint's record as the coordinators gave it.
    pub record: Value,
}

#[derive(Serialize, Deserialize)]
struct SealFile {
    version: u32,
    key: ShardKey,
    root: Digest,
    record: Value,
    /// BLAKE3 of the record's text. Never left out: a note whose sum is gone, by a flip in its name, say, would bear any
    /// other damage unseen.
    blake3: Digest,
}

/// The keys of a record are in one order, so its text is one.
fn sum(record: &Value) -> Digest {
    Digest(*blake3::hash(record.to_string().as_bytes()).as_bytes())
}

impl SealNote {
    /// From the coordinators' JSON text.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn new(root: Digest, json: &str) -> Result<Self, serde_json::Error> {
        Ok(Self { root, record: serde_json::from_str(json)? })
    }
}

impl ShardStore {
    /// Writes the seal beside the shard, durably. Again: replaced by the newer text.
    ///
    /// # Errors
    /// `Missing` where there is no such shard, `Transient` where the disk refuses.
    pub fn mark_sealed(&self, key: &ShardKey, seal: &SealNote) -> Result<(), ReadError> {
        let transient = |source: io::Error| ReadError::Transient { source };
        let SealNote { root, record } = seal.clone();
        // As it will be read: a fraction need not come back to the last digit.
        let read: Value = serde_json::from_str(&record.to_string()).map_err(|err| transient(err.into()))?;
        let blake3 = sum(&read);
        let file = SealFile { version: SEAL_VERSION, key: *key, root, record, blake3 };
        let bytes = serde_json::to_vec(&file).map_err(|err| transient(err.into()))?;
        let path = self.seal_path(key, seal.root);
        let _layout = self.inner.layout.lock();
        if !self.inner.index.lock().contains_key(&(*key, seal.root)) {
            return Err(ReadError::Missing);
        }
        files::write_durable(&self.inner.root.join("tmp"), &path, &bytes).map_err(transient)?;
        if let Some(meta) = self.inner.index.lock().get_mut(&(*key, seal.root)) {
            meta.sealed = true;
        }
        Ok(())
    }

    /// Where the seal of a shard lies.
    pub fn seal_path(&self, key: &ShardKey, root: Digest) -> PathBuf {
        with_suffix(&self.data_path(key, root), "seal")
    }

    /// The seal of a shard.
    ///
    /// # Errors
    /// `Missing` where it is not sealed, `Corrupt` where the note is damaged (the bytes may be good all the same).
    pub fn seal_of(&self, key: &ShardKey, root: Digest) -> Result<SealNote, ReadError> {
        let bytes = fs::read(self.seal_path(key, root)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Transient { source },
        })?;
        let file: SealFile = serde_json::from_slice(&bytes).map_err(|_| ReadError::Corrupt { extent: 0 })?;
        let is_whole = file.blake3 == sum(&file.record);
        if file.version > SEAL_VERSION || (file.key, file.root) != (*key, root) || !is_whole {
            return Err(ReadError::Corrupt { extent: 0 });
        }
        Ok(SealNote { root, record: file.record })
    }
}
