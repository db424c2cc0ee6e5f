//! Ranks with equal bytes, as data-parallel training has them: what one of them has on this node the others take from
//! there. So a node fetches each unique byte of a checkpoint once, however many of its ranks start from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use outlast_blobs::{ShardKey, ShardMeta};
use outlast_types::Digest;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::assigned::RestoreFrom;
use crate::context::{Context, blocking};
use crate::peer::drop_late;
use crate::transfer::chain;

type Turn = tokio::sync::Mutex<()>;

/// One fetch of the same bytes at a time.
#[derive(Debug, Default)]
pub(crate) struct Fetches(Mutex<BTreeMap<Digest, Weak<Turn>>>);

impl Fetches {
    /// Waits until nobody else fetches these bytes.
    pub(super) async fn turn(&self, root: Digest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&root).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(Turn::default());
                turns.insert(root, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// Copies the rank's shard from that of another rank of the checkpoint, verified as it is read. Whether it is here then.
pub(super) async fn copy(context: &Arc<Context>, key: ShardKey, from: &RestoreFrom) -> bool {
    let (context, root, size_bytes) = (Arc::clone(context), from.root, from.size_bytes);
    blocking(move || {
        let is_twin = |other: &ShardMeta| {
            let of_checkpoint = (other.key.attempt, other.key.seq) == (key.attempt, key.seq);
            of_checkpoint && other.key.rank != key.rank && (other.root, other.size_bytes) == (root, size_bytes)
        };
        for twin in context.shards.list().into_iter().filter(is_twin) {
            let copied = || -> Result<(), String> {
                let mut shard = context.shards.open_shard(&twin.key, root).map_err(|err| chain(&err))?;
                let mut writer = context.shards.begin(Some(size_bytes)).map_err(|err| chain(&err))?;
                writer.take_from(&mut shard, size_bytes).map_err(|err| chain(&err))?;
                let meta = writer.finish_as(&key, root, size_bytes).map_err(|err| chain(&err))?;
                drop_late(&context, &meta).map_or(Ok(()), Err)
            };
            match copied() {
                Ok(()) => return true,
                // Its own reader, proof or scrub says what is wrong with it.
                Err(reason) => {
                    tracing::debug!(attempt = %key.attempt, checkpoint = %key.seq, rank = key.rank, twin = twin.key.rank, reason, "equal bytes of another rank were of no use");
                }
            }
        }
        false
    })
    .await
}
