//! `RANK-ROOT.upload` beside a shard: which upload of it is under way and which parts the store has, so that an agent's
//! restart goes on instead of beginning again. Only a convenience: lost or damaged, the shard is sent anew.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use outlast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::store::{ShardKey, ShardStore, with_suffix};

/// Bumped when the meaning of a field changes; other versions are taken for no note.
const VERSION: u32 = 1;
/// Azure forgets unfinished parts after a week, and buckets are told to do the same. Well before that we begin anew.
const AGE_MAX_S: u64 = 3 * 24 * 3600;
/// Calls that failed, although the store answered, without one more part there. Then the upload itself is in doubt: there
/// are servers that answer 500 for one that they have forgotten, and 400 for parts that they lost.
const FUTILE_CALLS_MAX: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UploadNote {
    version: u32,
    /// Of the store; parts in another one are of no use.
    url: String,
    pub(super) path: String,
    pub(super) upload_id: String,
    part_bytes: u64,
    begun_unix_s: u64,
    futile_calls: u32,
    /// Part number (from zero) → the store's name for it.
    pub(super) parts: BTreeMap<u64, String>,
}

/// The place of one shard's note.
#[derive(Clone)]
pub(super) struct NotePlace {
    pub(super) store: ShardStore,
    pub(super) key: ShardKey,
    pub(super) root: Digest,
}

impl UploadNote {
    pub(super) fn new(url: String, path: String, upload_id: String, part_bytes: u64) -> Self {
        Self {
            version: VERSION,
            url,
            path,
            upload_id,
            part_bytes,
            begun_unix_s: unix_now(),
            futile_calls: 0,
            parts: BTreeMap::new(),
        }
    }

    pub(super) fn is_of(&self, url: &str) -> bool {
        self.url == url
    }

    /// Whether the upload can go on with parts of this size.
    pub(super) fn is_usable(&self, path: &str, part_bytes: u64) -> bool {
        let age = unix_now().checked_sub(self.begun_unix_s);
        self.path == path
            && self.part_bytes == part_bytes
            // From the future: the clock was set, and nobody knows how old it is.
            && age.is_some_and(|age| age < AGE_MAX_S)
            && self.futile_calls < FUTILE_CALLS_MAX
    }

    pub(super) fn part_is_there(&mut self, part: u64, name: String) {
        self.parts.insert(part, name);
        self.futile_calls = 0;
    }

    pub(super) fn call_failed(&mut self) {
        self.futile_calls += 1;
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Blocking, all of it.
impl NotePlace {
    fn path(&self) -> std::path::PathBuf {
        with_suffix(&self.store.data_path(&self.key, self.root), "upload")
    }

    pub(super) fn load(&self) -> Option<UploadNote> {
        let bytes = fs::read(self.path()).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|note: &UploadNote| note.version == VERSION)
    }

    pub(super) fn save(&self, note: &UploadNote) -> io::Result<()> {
        let bytes = serde_json::to_vec(note)?;
        files::write_durable(&self.store.tmp(), &self.path(), &bytes)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        files::remove_if_there(&self.path()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_that_the_store_may_have_forgotten_or_refuses_is_begun_anew() {
        let note = UploadNote::new("s3://b/".to_owned(), "p".to_owned(), "id".to_owned(), 16);
        assert!(note.is_usable("p", 16) && note.is_of("s3://b/") && !note.is_of("s3://c/"));
        assert!(!note.is_usable("q", 16) && !note.is_usable("p", 32));
        let old = UploadNote { begun_unix_s: unix_now() - AGE_MAX_S - 1, ..note.clone() };
        let future = UploadNote { begun_unix_s: unix_now() + 1000, ..note.clone() };
        assert!(!old.is_usable("p", 16) && !future.is_usable("p", 16));
        let mut failing = note;
        (0..FUTILE_CALLS_MAX).for_each(|_| failing.call_failed());
        assert!(!failing.is_usable("p", 16));
        failing.part_is_there(0, "x".to_owned());
        assert!(failing.is_usable("p", 16));
    }
}
