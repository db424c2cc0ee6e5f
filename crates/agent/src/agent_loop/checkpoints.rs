//! What the log says of checkpoints whose bytes are here. Only what it retired or aborted is deleted, by exact key.

use std::collections::BTreeMap;

use outlast_blobs::{SealNote, ShardMeta, ShardStore};
use outlast_proto::convert::parse;
use outlast_proto::node::v1 as pb;
use outlast_types::{CheckpointSeq, Digest, JobId};

use super::AgentLoop;
use crate::checkpoints::Fate;
use crate::context::blocking;

/// What to do on the disk.
enum Order {
    /// With the seal's JSON.
    Seal(String),
    Remove,
    /// Unless it was sealed once: a log that never heard of that was restored from an older backup, and the bytes may be the
    /// newest that there are.
    Discard,
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
            // Why its record left is not said, so the bytes stay.
            if state == "gone" {
                self.context.checkpoints.gone(job, seq);
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
        let store = self.context.shards.clone();
        self.context.tasks.spawn(blocking(move || {
            for (job, seq, order) in orders {
                let shards = store.list();
                for meta in shards.iter().filter(|meta| (meta.key.job, meta.key.seq) == (job, seq)) {
                    carry_out(&store, meta, &order);
                }
            }
        }));
    }
}

fn carry_out(store: &ShardStore, meta: &ShardMeta, order: &Order) {
    let key = &meta.key;
    match order {
        Order::Discard if meta.sealed => {
            tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "aborted, but it was sealed once: its bytes stay");
        }
        Order::Remove | Order::Discard => match store.remove(key, meta.root) {
            Ok(_) => tracing::debug!(job = %key.job, checkpoint = %key.seq, rank = key.rank, "shard removed"),
            Err(err) => {
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, error = %err, "a retired shard cannot be removed")
            }
        },
        Order::Seal(_) if meta.sealed => {}
        Order::Seal(json) => {
            // Other bytes under the same rank were not sealed.
            if sealed_roots(json).get(&key.rank).is_some_and(|root| *root != meta.root) {
                return;
            }
            let marked = SealNote::new(meta.root, json).map_err(|err| err.to_string());
            let marked = marked.and_then(|note| store.mark_sealed(key, &note).map_err(|err| err.to_string()));
            if let Err(reason) = marked {
                tracing::warn!(job = %key.job, checkpoint = %key.seq, rank = key.rank, reason, "the seal is not beside its shard yet");
            }
        }
    }
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
    use super::*;

    #[test]
    fn the_seal_names_the_root_of_each_rank() {
        let root = Digest([3; 32]);
        let json =
            format!(r#"{{"checkpoint": {{"shards": [{{"rank": 2, "root": "{root}"}}, {{"rank": 3}}]}}}}"#);
        assert_eq!(sealed_roots(&json), BTreeMap::from([(2, root)]));
        assert_eq!(sealed_roots("not json"), BTreeMap::new());
    }
}
