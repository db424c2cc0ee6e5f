//! The scrubber: finds files that are gone within seconds, and bytes that rotted within a day, before anybody needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{ShardKey, ShardMeta};
use outlast_process::boot_now;
use outlast_types::{BootTime, Digest, Millis};
use tokio_util::sync::CancellationToken;

use super::seal::look_at_seal;
use super::work::paced;
use super::{UpkeepEvent, damage};
use crate::context::{Context, blocking};
use crate::event::Event;

/// Between two looks at whether all files are there.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Each shard is read back once in this time (Ceph does it weekly; checkpoints live for days).
const SCRUB_EVERY_MS: Millis = 24 * 3_600_000;
/// Slow enough to be lost in the noise of any disk that trains.
const SCRUB_BYTES_PER_S: u64 = 16 << 20;

/// A shard that is this old and has no seal is asked for: the log may have sealed it when the disk did not take the note.
/// Asked again after twice that time, and twice as long each time.
const UNSEALED_MS: Millis = 60_000;
const UNSEALED_MS_MAX: Millis = 3_600_000;

type Shard = (ShardKey, Digest);

/// Runs until the agent stops.
pub(crate) async fn run(context: Arc<Context>) {
    let stop = context.shutdown.clone();
    let looking = look(&context);
    let reading = Box::pin(read_back(&context, &stop));
    let asking = Box::pin(ask_for_seals(&context));
    stop.run_until_cancelled(async { tokio::join!(looking, reading, asking) }).await;
}

async fn look(context: &Arc<Context>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let store = context.shards.clone();
        let found = blocking(move || {
            let damaged = |meta: ShardMeta| {
                let reason = damage(&store.look(&meta.key, meta.root).err()?)?;
                Some((meta.key, meta.root, reason))
            };
            store.list().into_iter().filter_map(damaged).collect::<Vec<_>>()
        })
        .await;
        for (shard, root, reason) in found {
            tell(context, shard, root, reason).await;
        }
    }
}

async fn ask_for_seals(context: &Arc<Context>) {
    let mut waits: BTreeMap<Shard, Wait> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let unsealed = context.shards.list().into_iter().filter(|meta| !meta.sealed);
        let unsealed: BTreeSet<Shard> = unsealed.map(|meta| (meta.key, meta.root)).collect();
        for (shard, root) in due(&unsealed, &mut waits, boot_now()) {
            look_at_seal(context, &shard, root).await;
        }
    }
}

struct Wait {
    until: BootTime,
    next_ms: Millis,
}

/// Those that have waited long enough; they wait anew.
fn due(unsealed: &BTreeSet<Shard>, waits: &mut BTreeMap<Shard, Wait>, now: BootTime) -> Vec<Shard> {
    waits.retain(|shard, _| unsealed.contains(shard));
    let mut due = Vec::new();
    for shard in unsealed {
        let first = Wait { until: now.plus(UNSEALED_MS), next_ms: UNSEALED_MS };
        let wait = waits.entry(*shard).or_insert(first);
        if now >= wait.until {
            wait.next_ms = (wait.next_ms * 2).min(UNSEALED_MS_MAX);
            wait.until = now.plus(wait.next_ms);
            due.push(*shard);
        }
    }
    due
}

async fn read_back(context: &Arc<Context>, stop: &CancellationToken) {
    // When each was read back last; a restart begins anew, oldest names first.
    let mut read_at: BTreeMap<Shard, BootTime> = BTreeMap::new();
    loop {
        let shards: Vec<Shard> = context.shards.list().iter().map(|meta| (meta.key, meta.root)).collect();
        read_at.retain(|shard, _| shards.contains(shard));
        let Some((shard, root)) = next(&shards, &read_at, boot_now()) else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let (store, stop) = (context.shards.clone(), stop.clone());
        let read =
            blocking(move || paced(&store, &shard, root, SCRUB_BYTES_PER_S, || stop.is_cancelled())).await;
        if !is_fresh(context, shard, root).await {
            look_at_seal(context, &shard, root).await;
        }
        context.metrics.shards_scrubbed.inc();
        read_at.insert((shard, root), boot_now());
        if let Some(reason) = read.err().as_ref().and_then(damage) {
            tell(context, shard, root, reason).await;
        }
    }
}

/// Most shards are read back right after they were written: the log has still to decide, and is not asked.
async fn is_fresh(context: &Arc<Context>, shard: ShardKey, root: Digest) -> bool {
    let store = context.shards.clone();
    let age = blocking(move || store.age(&shard, root)).await;
    age.is_some_and(|age| age < Duration::from_millis(UNSEALED_MS))
}

/// The one whose turn it is: never read, or longest ago.
fn next(shards: &[Shard], read_at: &BTreeMap<Shard, BootTime>, now: BootTime) -> Option<Shard> {
    let is_due = |shard: &&Shard| read_at.get(shard).is_none_or(|at| now.since(*at) >= SCRUB_EVERY_MS);
    shards.iter().filter(is_due).min_by_key(|shard| read_at.get(shard)).copied()
}

async fn tell(context: &Arc<Context>, shard: ShardKey, root: Digest, reason: String) {
    let _ = context.events.send(Event::Upkeep(UpkeepEvent::Damaged { shard, root, reason })).await;
}

#[cfg(test)]
mod tests {
    use outlast_types::{CheckpointSeq, JobId};

    use super::*;

    #[test]
    fn a_shard_without_a_seal_is_asked_for_again_and_again_but_ever_less_often() {
        let attempt = "j1/0@1.1".parse().expect("valid");
        let key = ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(1), rank: 0 };
        let (shard, mut waits) = ((key, Digest([0; 32])), BTreeMap::new());
        let unsealed = BTreeSet::from([shard]);
        let asked: Vec<u64> = (0..=60)
            .filter(|minute| !due(&unsealed, &mut waits, BootTime(minute * 60_000)).is_empty())
            .collect();
        assert_eq!(asked, [1, 3, 7, 15, 31]);
        assert!(
            due(&BTreeSet::new(), &mut waits, BootTime(0)).is_empty() && waits.is_empty(),
            "it has one now"
        );
    }

    #[test]
    fn every_shard_has_its_turn_once_a_day() {
        let shard = |rank| {
            let attempt = "j1/0@1.1".parse().expect("valid");
            (ShardKey { job: JobId(1), attempt, seq: CheckpointSeq(1), rank }, Digest([0; 32]))
        };
        let all = [shard(0), shard(1)];
        let mut read_at = BTreeMap::new();
        assert_eq!(next(&all, &read_at, BootTime(5)), Some(shard(0)));
        read_at.insert(shard(0), BootTime(5));
        assert_eq!(next(&all, &read_at, BootTime(6)), Some(shard(1)));
        read_at.insert(shard(1), BootTime(6));
        assert_eq!(next(&all, &read_at, BootTime(7)), None);
        assert_eq!(next(&all, &read_at, BootTime(SCRUB_EVERY_MS + 6)), Some(shard(0)));
    }
}
