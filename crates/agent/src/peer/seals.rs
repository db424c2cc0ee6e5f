//! What is here of sealed checkpoints, for whoever makes a cluster of what is left of one. In pages: an agent may have
//! thousands, and a message has a bound.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use outlast_blobs::{ManifestShard, ShardMeta, ShardStore};
use outlast_proto::FieldError;
use outlast_proto::convert::parse;
use outlast_proto::peer::v1 as pb;
use outlast_types::{AttemptId, CheckpointSeq};
use tonic::Status;

use crate::context::{Context, blocking};
use crate::sealed::Sealed;
use crate::transfer::{MESSAGE_BYTES_MAX, chain};

/// Checkpoints of one page: each has a small file to be read.
const CHECKPOINTS_MAX: usize = 256;
/// Of one page, where the seals are large; a message has some room beyond a chunk.
const COMMITS_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
/// Bundles that are named; an agent keeps some dozens.
const BUNDLES_MAX: usize = 4_096;

type Key = (AttemptId, CheckpointSeq);

pub(super) async fn list(
    context: &Arc<Context>,
    request: pb::ListSealsRequest,
) -> Result<pb::ListSealsResponse, Status> {
    let after = after(&request)?;
    let (shards, bundles) = (context.shards.clone(), context.bundles.clone());
    let (page, bundles) = blocking(move || {
        let bundles = if after.is_none() { bundles.list() } else { Ok(Vec::new()) };
        (page(&shards, after), bundles)
    })
    .await;
    let bundles = bundles.map_err(|err| Status::unavailable(chain(&err)))?;
    let predecessors = context.folder.predecessors();
    Ok(pb::ListSealsResponse {
        node: context.node.to_string(),
        boot_id: context.boot.to_string(),
        disk_id: context.disk.to_string(),
        address: context.address.clone(),
        cluster_id: context.cluster_text(),
        predecessors: predecessors.iter().map(ToString::to_string).collect(),
        bundles: bundles
            .into_iter()
            .take(BUNDLES_MAX)
            .map(|(digest, _)| Bytes::copy_from_slice(&digest.0))
            .collect(),
        checkpoints: page.checkpoints,
        more: page.more,
    })
}

fn after(request: &pb::ListSealsRequest) -> Result<Option<Key>, FieldError> {
    let pb::ListSealsRequest { after_attempt, after_checkpoint } = request;
    if after_attempt.is_empty() {
        return Ok(None);
    }
    let attempt = parse("after_attempt", after_attempt)?;
    Ok(Some((attempt, parse("after_checkpoint", after_checkpoint)?)))
}

#[derive(Debug)]
struct Page {
    checkpoints: Vec<pb::HeldCheckpoint>,
    more: bool,
}

/// Blocks on the disk.
fn page(store: &ShardStore, after: Option<Key>) -> Page {
    let mut held: BTreeMap<Key, Vec<ShardMeta>> = BTreeMap::new();
    for meta in store.list() {
        let key = (meta.key.attempt, meta.key.seq);
        if after.is_none_or(|after| key > after) {
            held.entry(key).or_default().push(meta);
        }
    }
    let (mut page, mut bytes) = (Page { checkpoints: Vec::new(), more: false }, 0);
    for (key, shards) in held {
        // A single seal may be larger than its share of a message, and comes all the same.
        if page.checkpoints.len() >= CHECKPOINTS_MAX || bytes >= COMMITS_BYTES_MAX {
            page.more = true;
            break;
        }
        let one = checkpoint(store, key, &shards);
        bytes += one.commit.len();
        page.checkpoints.push(one);
    }
    page
}

fn checkpoint(store: &ShardStore, (attempt, seq): Key, shards: &[ShardMeta]) -> pb::HeldCheckpoint {
    let mut held = pb::HeldCheckpoint {
        attempt: attempt.to_string(),
        checkpoint: seq.to_string(),
        ..pb::HeldCheckpoint::default()
    };
    // Each shard has a seal of its own: one that can be read is enough.
    for meta in shards.iter().filter(|meta| meta.sealed) {
        match Sealed::beside(store, &meta.key, meta.root) {
            Ok(sealed) => {
                let is_sealed = |meta: &&ShardMeta| {
                    let named =
                        |shard: &ManifestShard| (shard.rank, shard.root) == (meta.key.rank, meta.root);
                    sealed.manifest.shards.iter().any(named) && store.look(&meta.key, meta.root).is_ok()
                };
                held.ranks = shards.iter().filter(is_sealed).map(|meta| meta.key.rank).collect();
                held.commit = sealed.record.encode().into();
                held.damage.clear();
                break;
            }
            Err(err) => held.damage = err.to_string(),
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use outlast_blobs::objects::CommitRecord;
    use outlast_blobs::{Manifest, SealNote, ShardKey};
    use outlast_types::JobId;
    use serde_json::json;

    use super::*;

    fn attempt() -> AttemptId {
        "j1/0@1.2".parse().expect("valid")
    }

    fn put(store: &ShardStore, seq: u64, rank: u32) -> ShardMeta {
        let mut writer = store.begin(None).expect("begun");
        writer.write_all(&[rank as u8; 100]).expect("written");
        let key = ShardKey { job: JobId(1), attempt: attempt(), seq: CheckpointSeq(seq), rank };
        writer.finish(&key).expect("finished")
    }

    /// As the coordinators would tell it, with words of this length in the job's environment.
    fn seal(store: &ShardStore, shards: &[ShardMeta], words: usize) {
        let key = shards[0].key;
        let of = |meta: &ShardMeta| ManifestShard {
            rank: meta.key.rank,
            root: meta.root,
            size_bytes: meta.size_bytes,
        };
        let manifest = Manifest {
            job: key.job,
            attempt: key.attempt,
            seq: key.seq,
            step: 40,
            world_size: shards.len() as u32,
            shards: shards.iter().map(of).collect(),
        };
        let told = |meta: &ShardMeta| json!({"rank": meta.key.rank, "root": meta.root, "size_bytes": meta.size_bytes, "holders": []});
        let record = json!({
            "cluster_id": "home", "job_name": "a", "spec": "w".repeat(words), "bundle": null,
            "checkpoint": {
                "seq": key.seq, "step": 40, "attempt": key.attempt, "world_size": shards.len(),
                "state": "sealed", "opened_at": 1, "sealed_at": 2, "manifest_root": manifest.root(),
                "durability": "local", "degraded": false, "proven": false, "pinned": false,
                "shards": shards.iter().map(told).collect::<Vec<_>>(),
            },
        });
        for meta in shards {
            let note = SealNote::new(meta.root, &record.to_string()).expect("JSON");
            store.mark_sealed(&meta.key, &note).expect("sealed");
        }
    }

    fn blob(dir: &std::path::Path, meta: &ShardMeta, suffix: &str) -> std::path::PathBuf {
        let folder = dir.join("blobs").join(meta.key.attempt.file_name()).join(meta.key.seq.to_string());
        folder.join(format!("{}-{}{suffix}", meta.key.rank, meta.root))
    }

    #[test]
    fn a_page_tells_whose_sealed_bytes_are_here_and_what_was_never_sealed() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(dir.path()).expect("a store");
        let both = [put(&store, 3, 0), put(&store, 3, 1)];
        seal(&store, &both, 10);
        put(&store, 4, 0);
        let Page { checkpoints, more } = page(&store, None);
        let [sealed, open] = checkpoints.as_slice() else { panic!("{checkpoints:?}") };
        assert_eq!((sealed.ranks.as_slice(), sealed.damage.as_str(), more), (&[0, 1][..], "", false));
        let record = CommitRecord::decode(&sealed.commit).expect("a commit");
        assert_eq!((record.cluster.as_str(), record.job), ("home", JobId(1)));
        assert_eq!((open.checkpoint.as_str(), open.commit.len(), open.ranks.len()), ("ck4", 0, 0));
        // Bytes that are gone are not told of, though their seal is there.
        std::fs::remove_file(blob(dir.path(), &both[1], "")).expect("gone");
        assert_eq!(page(&store, None).checkpoints[0].ranks, [0]);
    }

    #[test]
    fn a_damaged_seal_is_named_unless_another_shard_has_a_good_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(dir.path()).expect("a store");
        let both = [put(&store, 3, 0), put(&store, 3, 1)];
        seal(&store, &both, 10);
        for (damaged, is_told) in [(&both[0], false), (&both[1], true)] {
            let path = blob(dir.path(), damaged, ".seal");
            let text = std::fs::read_to_string(&path).expect("a seal");
            std::fs::write(&path, text.replace("www", "vvv")).expect("damaged");
            let told = page(&store, None).checkpoints.remove(0);
            assert_eq!((told.commit.is_empty(), !told.damage.is_empty()), (is_told, is_told), "{told:?}");
        }
    }

    #[test]
    fn pages_are_bounded_and_go_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(dir.path()).expect("a store");
        for seq in 1..=5 {
            let shard = put(&store, seq, 0);
            seal(&store, &[shard], COMMITS_BYTES_MAX / 2);
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let Page { checkpoints, more } = page(&store, after);
            assert!((1..=2).contains(&checkpoints.len()), "{} in one page", checkpoints.len());
            let last = checkpoints.last().expect("not empty");
            after = Some((attempt(), last.checkpoint.parse().expect("a number")));
            seen.extend(checkpoints.iter().map(|one| one.checkpoint.clone()));
            if !more {
                break;
            }
        }
        assert_eq!(seen, ["ck1", "ck2", "ck3", "ck4", "ck5"]);
    }
}
