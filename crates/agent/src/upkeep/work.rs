//! One order, carried out: the bytes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_blobs::{ReadError, ShardKey, ShardStore};
use outlast_control::state::ShardTask;
use outlast_process::boot_now;
use outlast_types::Digest;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Ended, OrderKey, UpkeepEvent, damage, store};
use crate::assigned::{RestoreFrom, ShardOrder};
use crate::context::{Context, blocking};
use crate::event::Event;
use crate::metrics::Phase;
use crate::peer::client::{self, Unusable};

/// What a proof may read in a second: training's own reads and writes go before it.
const PROVE_BYTES_PER_S: u64 = 256 << 20;

/// Waits for its turn, does it, and says how it ended.
pub(super) async fn carry_out(
    context: Arc<Context>,
    order: ShardOrder,
    turns: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let key = order.key;
    let Some(Ok(turn)) = stop.run_until_cancelled(turns.acquire_owned()).await else { return };
    let work = async {
        match key.task {
            ShardTask::Copy => copy(&context, &order).await,
            ShardTask::Prove => prove(&context, &key, &stop).await,
            ShardTask::Store => store::store(&context, &order, turn, &stop).await,
        }
    };
    let ended = match key.task {
        // It ends by itself, between two requests: the answer to one that is under way has to be known before anything
        // of the checkpoint is taken out of the store again.
        ShardTask::Store => context.shutdown.run_until_cancelled(work).await.filter(|_| !stop.is_cancelled()),
        ShardTask::Copy | ShardTask::Prove => stop.run_until_cancelled(work).await,
    };
    let Some(ended) = ended else { return };
    let _ = context.events.send(Event::Upkeep(UpkeepEvent::Ended(key, ended))).await;
}

/// A copy of what the object store has: taken away there too when it is retired. Whoever put it there may be gone.
async fn copy(context: &Arc<Context>, order: &ShardOrder) -> Ended {
    let copied = fetch(context, order).await;
    if copied == Ended::Done && order.stored {
        let (store, OrderKey { shard, root, .. }) = (context.shards.clone(), order.key);
        if let Err(err) = blocking(move || store.mark_stored(&shard, root)).await {
            tracing::warn!(attempt = %shard.attempt, rank = shard.rank, checkpoint = %shard.seq, error = %err, "it cannot be noted that a shard is stored");
        }
    }
    copied
}

/// Fetches from the first holder that has good bytes. What is here already is only verified.
async fn fetch(context: &Arc<Context>, order: &ShardOrder) -> Ended {
    let ShardOrder { key: OrderKey { shard, root, .. }, size_bytes, holders, stored, bundle: _ } =
        order.clone();
    let store = context.shards.clone();
    if blocking(move || store.verify(&shard, root)).await.is_ok() {
        return Ended::Done;
    }
    let from = RestoreFrom {
        seq: shard.seq,
        step: 0,
        attempt: shard.attempt,
        root,
        size_bytes,
        holders: holders.clone(),
        stored,
    };
    let mut said = Vec::new();
    for peer in holders.iter().filter(|peer| peer.node != context.node.as_str()) {
        match client::get_shard(context, peer, shard, &from).await {
            Ok(()) => return Ended::Done,
            Err(Unusable::Local(reason)) => return Ended::Failed(reason),
            Err(Unusable::Corrupt(reason) | Unusable::Missing(reason) | Unusable::Transient(reason)) => {
                said.push(format!("{}: {reason}", peer.node));
            }
        }
    }
    if stored {
        match client::get_stored(context, shard, root, size_bytes).await {
            Ok(()) => return Ended::Done,
            Err(unusable) => said.push(format!("object store: {}", unusable.reason())),
        }
    }
    match said.is_empty() {
        true => Ended::Failed("no holder of it is there".to_owned()),
        false => Ended::Failed(said.join("; ")),
    }
}

async fn prove(context: &Arc<Context>, key: &OrderKey, stop: &CancellationToken) -> Ended {
    let (store, shard, root, stop) = (context.shards.clone(), key.shard, key.root, stop.clone());
    let began = boot_now();
    let read = blocking(move || paced(&store, &shard, root, PROVE_BYTES_PER_S, || stop.is_cancelled())).await;
    context.metrics.checkpoint_took(Phase::Prove, boot_now().since(began));
    match read {
        Ok(()) => Ended::Done,
        Err(err) => damage(&err).map_or_else(|| Ended::Later(crate::transfer::chain(&err)), Ended::Damaged),
    }
}

/// Reads a shard back no faster than this many bytes a second. Blocks.
pub(super) fn paced(
    store: &ShardStore,
    shard: &ShardKey,
    root: Digest,
    bytes_per_s: u64,
    is_over: impl Fn() -> bool,
) -> Result<(), ReadError> {
    let began = Instant::now();
    let mut read = 0u64;
    store.read_back(shard, root, |bytes| {
        read += bytes;
        let due = Duration::from_secs_f64(read as f64 / bytes_per_s as f64);
        while let Some(ahead) = due.checked_sub(began.elapsed()).filter(|ahead| !ahead.is_zero()) {
            if is_over() {
                return false;
            }
            std::thread::sleep(ahead.min(Duration::from_millis(200)));
        }
        !is_over()
    })
}
