//! What the log says of checkpoints whose bytes are here. Only what it retired or aborted is deleted, by exact key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{SealNote, ShardKey, ShardMeta, ShardStore};
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
    /// With the seal's JSON.
    Seal(String),
    Remove,
    /// Unless it was sealed once: a log that never heard of that was restored from an older backup, and the bytes may be the
    /// newest that there are.
    Discard,
    /// No record names them any more, and nobody will say that they may go. Those that were never sealed go when they are
    /// old; what was sealed once stays, as above.
    Reap,
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
                orders.push((job, seq, Order::Reap));
                continue;
            }
            // Unknown too: bytes are kept where there is doubt.
            let Some(fate) = Fate::of(&state) else { continue };
            let order = match state.as_str() {
                "sealed" => Some(Order::Seal(seal)),
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
    let mut stored = Vec::new();
    if matches!(order, Order::Remove | Order::Discard) {
        for (key, root) in store.aside().into_iter().filter(|(key, _)| is_it(key)) {
            match (order, store.is_stored(&key, root)) {
                (Order::Remove, true) => stored.push((key, root)),
                // What was sealed once stays when it is said to be aborted, here as below.
                (Order::Discard, true) => {}
                (Order::Discard, false) if store.seal_of(&key, root).is_ok() => {}
                _ => remove(store, &key, root),
            }
        }
    }
    for meta in store.list().into_iter().filter(|meta| is_it(&meta.key)) {
        match matches!(order, Order::Remove) && store.is_stored(&meta.key, meta.root) {
            true => stored.push((meta.key, meta.root)),
            false => carry_out(store, &meta, order),
        }
    }
    stored
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
    let Order::Seal(json) = order else { return Vec::new() };
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

fn carry_out(store: &ShardStore, meta: &ShardMeta, order: &Order) {
    let key = &meta.key;
    match order {
        Order::Reap if meta.sealed || store.age(key, meta.root).is_none_or(|age| age < ORPHAN_AGE) => {}
        Order::Discard if meta.sealed => {
            tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "aborted, but it was sealed once: its bytes stay");
        }
        Order::Remove | Order::Discard | Order::Reap => remove(store, key, meta.root),
        // Told with each session: a note that went bad is made anew.
        Order::Seal(_) if meta.sealed && store.seal_of(key, meta.root).is_ok() => {}
        Order::Seal(json) => {
            // Other bytes under the same rank were not sealed.
            if sealed_roots(json).get(&key.rank).is_some_and(|root| *root != meta.root) {
                return;
            }
            let marked = note_seal(store, key, meta.root, json);
            if let Err(reason) = marked {
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, reason, "the seal is not beside its shard yet");
            }
        }
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
    fn the_seal_names_the_root_of_each_rank() {
        let root = Digest([3; 32]);
        let json =
            format!(r#"{{"checkpoint": {{"shards": [{{"rank": 2, "root": "{root}"}}, {{"rank": 3}}]}}}}"#);
        assert_eq!(sealed_roots(&json), BTreeMap::from([(2, root)]));
        assert_eq!(sealed_roots("not json"), BTreeMap::new());
    }
}
