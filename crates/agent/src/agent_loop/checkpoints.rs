//! What the log says of checkpoints whose bytes are here. Only what it retired or aborted is deleted, by exact key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{ReadError, SealNote, ShardKey, ShardMeta, ShardStore};
use outlast_control::state::{Checkpoint, Holder, ShardRecord};
use outlast_failpoint::{Failpoint, hit};
use outlast_proto::convert::parse;
use outlast_proto::node::v1 as pb;
use outlast_types::{CheckpointSeq, Digest, JobId};

use super::AgentLoop;
use crate::checkpoints::Fate;
use crate::context::{Context, blocking};
use crate::event::Event;
use crate::upkeep::{UpkeepEvent, damage, store};

/// Bytes that no record names are kept this long, whatever the log says: the last word in a doubt is a person's.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3_600);
/// Tries to take a retired checkpoint out of the object store: about a day of an outage.
const REMOVE_TRIES: u32 = 150;
const REMOVE_AGAIN_MIN: Duration = Duration::from_secs(2);
const REMOVE_AGAIN_MAX: Duration = Duration::from_secs(600);

/// What to do on the disk.
enum Order {
    /// The seal's JSON, as the log of this cluster has it.
    Seal {
        cluster: String,
        json: String,
    },
    Remove,
    /// Unless it was sealed once: a log that never heard of that was restored from an older backup, and the bytes may be the
    /// newest that there are.
    Discard,
    /// No record names them any more: it left the log after its end, before this agent was told. What the log of this very
    /// cluster had sealed was retired; what the log of a predecessor had sealed stays, as above; what was never sealed goes
    /// when it is old.
    Reap {
        cluster: String,
    },
}

impl AgentLoop {
    pub(super) fn handle_checkpoints(&self, updates: pb::CheckpointUpdates) {
        let mut orders = Vec::new();
        for update in updates.updates {
            let pb::CheckpointUpdate { job, checkpoint, state, index: _, seal } = update;
            let (Ok(job), Ok(seq)) =
                (parse::<JobId>("job", &job), parse::<CheckpointSeq>("checkpoint", &checkpoint))
            else {
                tracing::warn!(job, checkpoint, "an update about a checkpoint is not understood");
                continue;
            };
            if state == "gone" {
                self.context.checkpoints.gone(job, seq);
                orders.push((job, seq, Order::Reap { cluster: self.context.cluster_text() }));
                continue;
            }
            // Unknown too: bytes are kept where there is doubt.
            let Some(fate) = Fate::of(&state) else { continue };
            let order = match state.as_str() {
                "sealed" => Some(Order::Seal { cluster: self.context.cluster_text(), json: seal }),
                "retired" => Some(Order::Remove),
                "aborted" => Some(Order::Discard),
                _ => None,
            };
            self.context.checkpoints.decided(job, seq, fate);
            orders.extend(order.map(|order| (job, seq, order)));
        }
        if orders.is_empty() {
            return;
        }
        let context = Arc::clone(&self.context);
        self.context.tasks.spawn(async move {
            let (store, holder) = (context.shards.clone(), context.holder());
            let done = blocking(move || {
                let absent = orders.iter().flat_map(|(_, _, order)| absent(&store, &holder, order)).collect();
                let stored =
                    orders.iter().flat_map(|(job, seq, order)| of_checkpoint(&store, *job, *seq, order));
                (absent, stored.collect())
            });
            let (absent, stored): (Vec<UpkeepEvent>, Vec<Shard>) = done.await;
            for event in absent {
                let _ = context.events.send(Event::Upkeep(event)).await;
            }
            for shard in stored {
                context.tasks.spawn(remove_stored(Arc::clone(&context), shard));
            }
        });
    }
}

type Shard = (ShardKey, Digest);

/// Carries the order out for all ranks that are here; those that the object store has too are left for `remove_stored`.
fn of_checkpoint(store: &ShardStore, job: JobId, seq: CheckpointSeq, order: &Order) -> Vec<Shard> {
    let is_it = |key: &ShardKey| (key.job, key.seq) == (job, seq);
    let whole: Vec<ShardMeta> = store.list().into_iter().filter(|meta| is_it(&meta.key)).collect();
    if let Order::Seal { cluster, json } = order {
        whole.iter().for_each(|meta| seal(store, meta, cluster, json));
        return Vec::new();
    }
    let aside = store.aside().into_iter().filter(|(key, _)| is_it(key));
    let here = aside.chain(whole.iter().map(|meta| (meta.key, meta.root)));
    let (stored, plain): (Vec<Shard>, Vec<Shard>) = here
        .filter(|(key, root)| may_go(store, key, *root, order))
        .partition(|(key, root)| store.is_stored(key, *root));
    plain.iter().for_each(|(key, root)| remove(store, key, *root));
    stored
}

fn may_go(store: &ShardStore, key: &ShardKey, root: Digest, order: &Order) -> bool {
    let seal = || store.seal_of(key, root);
    match order {
        Order::Seal { .. } => false,
        Order::Remove => true,
        Order::Discard => {
            let is_unsealed = matches!(seal(), Err(ReadError::Missing));
            if !is_unsealed {
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "aborted, but it was sealed once: its bytes stay");
            }
            is_unsealed
        }
        Order::Reap { cluster } => match seal() {
            Ok(note) => note.record["cluster_id"] == cluster.as_str(),
            Err(ReadError::Missing) => store.age(key, root).is_some_and(|age| age >= ORPHAN_AGE),
            // It may be a predecessor's.
            Err(err) => {
                let path = store.seal_path(key, root);
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, path = %path.display(), error = %err, "the log has no record of a shard and its seal cannot be read, so its bytes stay: remove them by hand, with the files of the same name, if nobody needs them");
                false
            }
        },
    }
}

/// The object store first: the seal beside the own bytes says what is to go there. What does not go now goes when the
/// agent connects again, at the latest.
async fn remove_stored(context: Arc<Context>, shard: Shard) {
    // Told again by each session: one of them is enough.
    if context.removing.lock().insert(shard) {
        try_to_remove(&context, shard).await;
        context.removing.lock().remove(&shard);
    }
}

async fn try_to_remove(context: &Arc<Context>, (key, root): Shard) {
    let mut pause = REMOVE_AGAIN_MIN;
    for _ in 0..REMOVE_TRIES {
        // An upload of it that is being ended must not bring anything back.
        let is_storing = context.storing.lock().contains(&(key, root));
        let removed = match is_storing {
            true => Err("its upload is being ended".to_owned()),
            false => store::remove(context, &key, root).await,
        };
        match removed {
            Ok(()) => {
                let shards = context.shards.clone();
                return blocking(move || remove(&shards, &key, root)).await;
            }
            Err(reason) => {
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, reason, "a retired checkpoint stays in the object store for now");
            }
        }
        if context.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(REMOVE_AGAIN_MAX);
    }
}

/// Sealed shards that the log believes to be on this disk, and that are not: a folder was deleted while the agent was
/// down. The log has to know, or it would count on them.
fn absent(store: &ShardStore, here: &Holder, order: &Order) -> Vec<UpkeepEvent> {
    let Order::Seal { json, .. } = order else { return Vec::new() };
    let record: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let Ok(checkpoint) = serde_json::from_value::<Checkpoint>(record["checkpoint"].clone()) else {
        return Vec::new();
    };
    let is_here = |shard: &&ShardRecord| {
        shard.holders.iter().any(|holder| (&holder.node, &holder.disk) == (&here.node, &here.disk))
    };
    let gone = |shard: &ShardRecord| {
        let attempt = checkpoint.attempt;
        let key = ShardKey { job: attempt.group.job, attempt, seq: checkpoint.seq, rank: shard.rank };
        let reason = damage(&store.look(&key, shard.root).err()?)?;
        Some(UpkeepEvent::Damaged { shard: key, root: shard.root, reason })
    };
    checkpoint.shards.iter().filter(is_here).filter_map(gone).collect()
}

fn seal(store: &ShardStore, meta: &ShardMeta, cluster: &str, json: &str) {
    let key = &meta.key;
    // Told with each session: a note that went bad is made anew, and so is a predecessor's. What this cluster sealed, or
    // goes on from, it may retire.
    let is_ours = |note: SealNote| note.record["cluster_id"] == cluster;
    let is_noted = meta.sealed && store.seal_of(key, meta.root).is_ok_and(is_ours);
    if is_noted || seals_other_bytes(json, key, meta.root) {
        return;
    }
    if let Err(reason) = note_seal(store, key, meta.root, json) {
        tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, reason, "the seal is not beside its shard yet");
    }
}

fn remove(store: &ShardStore, key: &ShardKey, root: Digest) {
    match store.remove(key, root) {
        Ok(_) => tracing::debug!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "shard removed"),
        Err(err) => {
            tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, error = %err, "a retired shard cannot be removed")
        }
    }
}

/// A seal's text laid beside its shard.
///
/// # Errors
/// In words, for the log.
pub(crate) fn note_seal(store: &ShardStore, key: &ShardKey, root: Digest, json: &str) -> Result<(), String> {
    hit(Failpoint::AgentSealBeforeNote).map_err(|err| err.to_string())?;
    let note = SealNote::new(root, json).map_err(|err| err.to_string())?;
    store.mark_sealed(key, &note).map_err(|err| err.to_string())
}

/// Other bytes under the same rank were not sealed.
pub(crate) fn seals_other_bytes(json: &str, key: &ShardKey, root: Digest) -> bool {
    sealed_roots(json).get(&key.rank).is_some_and(|sealed| *sealed != root)
}

/// The root of each rank, as far as the seal names them.
fn sealed_roots(json: &str) -> BTreeMap<u32, Digest> {
    let seal: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let shards = seal["checkpoint"]["shards"].as_array().cloned().unwrap_or_default();
    let one = |shard: &serde_json::Value| {
        let rank = u32::try_from(shard["rank"].as_u64()?).ok()?;
        Some((rank, shard["root"].as_str()?.parse().ok()?))
    };
    shards.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn bytes_that_were_set_aside_go_with_their_checkpoint_and_out_of_the_object_store_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(folder.path()).expect("a store");
        let attempt = "j1/0@1.1".parse().expect("an id");
        let (job, seq) = (JobId(1), CheckpointSeq(4));
        let shard = |rank: u32| {
            let mut writer = store.begin(None).expect("room");
            writer.write_all(b"weights").expect("written");
            let meta = writer.finish(&ShardKey { job, attempt, seq, rank }).expect("whole");
            note_seal(&store, &meta.key, meta.root, "{}").expect("sealed");
            meta
        };
        let (plain, stored) = (shard(0), shard(1));
        store.mark_stored(&stored.key, stored.root).expect("noted");
        for meta in [&plain, &stored] {
            store.set_aside(&meta.key, meta.root).expect("aside");
        }
        assert!(of_checkpoint(&store, job, seq, &Order::Discard).is_empty());
        assert_eq!(store.aside().len(), 2, "they were sealed once: a log of an older backup may be wrong");
        let left = of_checkpoint(&store, job, seq, &Order::Remove);
        assert_eq!(left, [(stored.key, stored.root)]);
        assert_eq!(store.aside(), [(stored.key, stored.root)], "until the object store has let it go");
        remove(&store, &stored.key, stored.root);
        assert_eq!(store.aside(), []);
    }

    #[test]
    fn what_left_the_log_after_its_end_goes_where_this_very_cluster_had_sealed_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(folder.path()).expect("a store");
        let attempt = "j1/0@1.1".parse().expect("an id");
        let shard = |seq: u64, seal: Option<&str>| {
            let mut writer = store.begin(None).expect("room");
            writer.write_all(b"weights").expect("written");
            let key = ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(seq), rank: 0 };
            let meta = writer.finish(&key).expect("whole");
            if let Some(json) = seal {
                note_seal(&store, &key, meta.root, json).expect("sealed");
            }
            key
        };
        let own_seal = r#"{"cluster_id": "here"}"#;
        let (own, published) = (shard(1, Some(own_seal)), shard(2, Some(own_seal)));
        let older = shard(3, Some(r#"{"cluster_id": "before the restore"}"#));
        let fresh = shard(4, None);
        let damaged = shard(5, Some(own_seal));
        let root = store.list()[0].root;
        std::fs::write(store.seal_path(&damaged, root), b"{").expect("damaged");
        store.mark_stored(&published, root).expect("noted");
        let reap = Order::Reap { cluster: "here".to_owned() };
        let stored: Vec<Shard> = [&own, &published, &older, &fresh, &damaged]
            .into_iter()
            .flat_map(|key| of_checkpoint(&store, key.job, key.seq, &reap))
            .collect();
        assert_eq!(stored, [(published, root)], "the object store lets it go first");
        let mut left: Vec<ShardKey> = store.list().into_iter().map(|meta| meta.key).collect();
        left.sort();
        assert_eq!(left, [published, older, fresh, damaged], "where there is doubt, bytes stay");
    }

    #[test]
    fn a_seal_of_a_predecessor_is_made_anew_and_other_bytes_get_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = ShardStore::open(folder.path()).expect("a store");
        let attempt = "j1/0@1.1".parse().expect("an id");
        let (job, seq) = (JobId(1), CheckpointSeq(1));
        let shard = |bytes: &[u8]| {
            let mut writer = store.begin(None).expect("room");
            writer.write_all(bytes).expect("written");
            writer.finish(&ShardKey { job, attempt, seq, rank: 0 }).expect("whole")
        };
        let (sealed, other) = (shard(b"sealed"), shard(b"other"));
        let json = |cluster: &str, step: u64| {
            let shards = serde_json::json!([{"rank": 0, "root": sealed.root}]);
            serde_json::json!({"cluster_id": cluster, "checkpoint": {"step": step, "shards": shards}})
                .to_string()
        };
        let step =
            || store.seal_of(&sealed.key, sealed.root).expect("sealed").record["checkpoint"]["step"].clone();
        for (cluster, told, expected) in [("a", 1, 1), ("a", 2, 1), ("b", 3, 3), ("b", 4, 3)] {
            let order = Order::Seal { cluster: cluster.to_owned(), json: json(cluster, told) };
            of_checkpoint(&store, job, seq, &order);
            assert_eq!(step(), expected, "only what another cluster wrote is written again");
        }
        assert!(matches!(store.seal_of(&other.key, other.root), Err(ReadError::Missing)));
    }

    #[test]
    fn the_seal_names_the_root_of_each_rank() {
        let root = Digest([3; 32]);
        let json =
            format!(r#"{{"checkpoint": {{"shards": [{{"rank": 2, "root": "{root}"}}, {{"rank": 3}}]}}}}"#);
        assert_eq!(sealed_roots(&json), BTreeMap::from([(2, root)]));
        assert_eq!(sealed_roots("not json"), BTreeMap::new());
    }
}
