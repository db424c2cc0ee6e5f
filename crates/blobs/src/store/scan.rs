//! What is on the disk when a store is opened: whole shards, bytes that were set aside, and what a crash left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use outlast_types::{AttemptId, CheckpointSeq, Digest};

use super::key::{parse_attempt, parse_file};
use super::{COMPANIONS, ShardKey, ShardMeta, reader, with_suffix};
use crate::files;

/// Keys with their roots.
#[derive(Default)]
pub(super) struct Found {
    pub(super) index: BTreeMap<(ShardKey, Digest), ShardMeta>,
    pub(super) aside: BTreeSet<(ShardKey, Digest)>,
}

/// Walks `blobs/ATTEMPT/SEQ/RANK-ROOT`. What does not look like ours is left alone. Lost extent hashes are made again from
/// the bytes, which takes the time to read them; a shard whose bytes are damaged is kept but not counted.
pub(super) fn scan(blobs: &Path, tmp: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for attempt in fs::read_dir(blobs)? {
        let attempt = attempt?;
        let Some(id) = attempt.file_name().to_str().and_then(parse_attempt) else { continue };
        for seq in fs::read_dir(attempt.path())? {
            let seq = seq?;
            let Some(number) = seq.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            found.look_into(&seq.path(), tmp, id, number)?;
        }
        // Not empty while shards are there, and that is fine.
        let _ = fs::remove_dir(attempt.path());
    }
    Ok(found)
}

impl Found {
    /// One checkpoint's folder.
    fn look_into(
        &mut self,
        folder: &Path,
        tmp: &Path,
        attempt: AttemptId,
        seq: CheckpointSeq,
    ) -> io::Result<()> {
        let mut shards: BTreeSet<(u32, Digest)> = BTreeSet::new();
        for file in fs::read_dir(folder)? {
            shards.extend(file?.file_name().to_str().and_then(shard_of));
        }
        for (rank, root) in shards {
            let key = ShardKey { job: attempt.group.job, attempt, seq, rank };
            self.look_at(&folder.join(format!("{rank}-{root}")), tmp, (key, root))?;
        }
        let _ = fs::remove_dir(folder);
        Ok(())
    }

    fn look_at(&mut self, data: &Path, tmp: &Path, shard: (ShardKey, Digest)) -> io::Result<()> {
        if fs::exists(data)? {
            match meta(data, tmp, shard) {
                Some(meta) => drop(self.index.insert(shard, meta)),
                None => {
                    tracing::warn!(path = %data.display(), "a shard is damaged; kept, but not counted");
                    self.aside.insert(shard);
                }
            }
        } else if fs::exists(with_suffix(data, "bad"))? || fs::exists(with_suffix(data, "stored"))? {
            // Without bytes, but with some in the object store: they are to go from there with their checkpoint.
            self.aside.insert(shard);
        } else {
            // A crash in the middle of a write, or of a removal: hashes and notes without bytes are nothing.
            for suffix in COMPANIONS {
                files::remove_if_there(&with_suffix(data, suffix))?;
            }
        }
        Ok(())
    }
}

/// The shard that a file belongs to, as its bytes or beside them.
fn shard_of(name: &str) -> Option<(u32, Digest)> {
    let beside = COMPANIONS.iter().find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix('.'));
    parse_file(beside.unwrap_or(name))
}

fn meta(data: &Path, tmp: &Path, (key, root): (ShardKey, Digest)) -> Option<ShardMeta> {
    let outboard = reader::load_outboard(data, tmp, root).ok()?;
    let is_whole = fs::metadata(data).is_ok_and(|meta| meta.is_file() && meta.len() == outboard.size_bytes);
    let sealed = with_suffix(data, "seal").exists();
    is_whole.then_some(ShardMeta {
        key,
        root,
        size_bytes: outboard.size_bytes,
        extents: outboard.extents,
        sealed,
    })
}
