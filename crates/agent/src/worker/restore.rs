//! The rank's part of the checkpoint that its attempt starts from: from the own disk, else from a rank beside it that has
//! the same bytes, else from a peer, every byte verified before the worker sees it. "It is bad", "it is not there" and "it
//! cannot be read now" are different answers.

use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::{ReadError, ShardKey, pack};
use outlast_failpoint::{Failpoint, hit};
use tokio::time::{Instant, timeout};

use super::folder::WorkerDir;
use super::handle::WorkerHandle;
use super::twin;
use crate::assigned::RestoreFrom;
use crate::context::{Context, blocking};
use crate::metrics::Phase;
use crate::peer::client::{self, Unusable};
use crate::transfer::chain;

/// Holders that are merely away are asked again for this long; the coordinator has its own patience (`restore_wait`).
const TRY_FOR: Duration = Duration::from_secs(30);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct RestoreError {
    /// Every holder answered that its bytes are bad or gone.
    pub(super) corrupt: bool,
    pub(super) reason: String,
}

/// Fills the restore folder.
pub(super) async fn restore(
    context: &Arc<Context>,
    handle: &WorkerHandle,
    from: RestoreFrom,
) -> Result<(), RestoreError> {
    let (rank, dir, mut from) = (handle.key.rank, &handle.dir, from);
    let key = ShardKey { job: from.attempt.group.job, attempt: from.attempt, seq: from.seq, rank };
    let began = Instant::now();
    let until = began + TRY_FOR;
    let restored = || {
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        context.metrics.checkpoint_took(Phase::Restore, millis);
        Ok(())
    };
    loop {
        let mut said = Vec::new();
        match unpack_own(context, key, &from, dir).await {
            Ok(()) => return restored(),
            Err(unusable) => said.push(("this node".to_owned(), unusable)),
        }
        // Whoever waits here finds what the rank before it fetched; or fetches beside it, where that hangs.
        let patience = client::deadline(from.size_bytes);
        let mut turn = timeout(patience, context.fetches.turn(from.root)).await.ok();
        if twin::copy(context, key, &from).await {
            turn = None;
            match unpack_own(context, key, &from, dir).await {
                Ok(()) => return restored(),
                Err(unusable) => said.push(("this node's copy of another rank".to_owned(), unusable)),
            }
        }
        for peer in from.holders.iter().filter(|peer| peer.node != context.node.as_str()) {
            let fetched = client::get_shard(context, peer, key, &from).await;
            let tried = match fetched {
                Ok(()) => unpack_own(context, key, &from, dir).await,
                Err(unusable) => Err(unusable),
            };
            match tried {
                Ok(()) => return restored(),
                Err(unusable) => said.push((peer.node.clone(), unusable)),
            }
        }
        if from.stored {
            let fetched = client::get_stored(context, key, from.root, from.size_bytes).await;
            let tried = match fetched {
                Ok(()) => unpack_own(context, key, &from, dir).await,
                Err(unusable) => Err(unusable),
            };
            match tried {
                Ok(()) => return restored(),
                Err(unusable) => said.push(("object store".to_owned(), unusable)),
            }
        }
        drop(turn);
        if from.holders.is_empty() && !from.stored {
            // Only nodes that are there are named: those that have it are merely away.
            let nobody = "no node that has it is there".to_owned();
            said.push(("others".to_owned(), Unusable::Transient(nobody)));
        }
        // A holder may have come back meanwhile, perhaps at another address: nobody is called bad unasked.
        let may_change = said.iter().any(|(_, unusable)| matches!(unusable, Unusable::Transient(_)));
        let newest = handle.assigned.borrow().restore.clone();
        let newer = newest.filter(|newest| newest.seq == from.seq && *newest != from);
        if !(may_change || newer.is_some()) || Instant::now() >= until {
            return Err(verdict(&from, &said));
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
        let newest = handle.assigned.borrow().restore.clone();
        from = newest.filter(|newest| newest.seq == from.seq).unwrap_or(from);
    }
}

/// Corrupt only if nobody was merely away, and the trouble is not our own.
fn verdict(from: &RestoreFrom, said: &[(String, Unusable)]) -> RestoreError {
    let corrupt =
        said.iter().all(|(_, unusable)| matches!(unusable, Unusable::Corrupt(_) | Unusable::Missing(_)));
    let words: Vec<_> = said
        .iter()
        .map(|(node, unusable)| match unusable {
            Unusable::Corrupt(reason) => format!("{node}: damaged ({reason})"),
            Unusable::Missing(reason) => format!("{node}: not there ({reason})"),
            Unusable::Transient(reason) => format!("{node}: cannot be read now ({reason})"),
            Unusable::Local(reason) => format!("{node}: {reason}"),
        })
        .collect();
    RestoreError {
        corrupt,
        reason: format!("checkpoint {} has no usable bytes; {}", from.seq, words.join("; ")),
    }
}

async fn unpack_own(
    context: &Arc<Context>,
    key: ShardKey,
    from: &RestoreFrom,
    dir: &WorkerDir,
) -> Result<(), Unusable> {
    let (store, root, target) = (context.shards.clone(), from.root, dir.restore());
    blocking(move || {
        super::folder::remove_dir(&target).map_err(|err| Unusable::Local(err.to_string()))?;
        let failed = |err: std::io::Error| Unusable::Transient(err.to_string());
        hit(Failpoint::AgentRestoreBeforeRead).map_err(failed)?;
        let shard = store.open_shard(&key, root).map_err(|err| classify(&err))?;
        // Every extent is verified before one byte of it gets here; what was unpacked before a bad one is removed above.
        pack::unpack(shard, &target, pack::PackLimits::CHECKPOINT).map_err(|err| unpacked(&err))?;
        hit(Failpoint::AgentRestoreUnpacked).map_err(failed)
    })
    .await
}

fn unpacked(error: &pack::PackError) -> Unusable {
    let source = match error {
        pack::PackError::Damaged { source } | pack::PackError::Io { source, .. } => Some(source),
        _ => None,
    };
    let read = source.and_then(|source| source.get_ref()).and_then(|inner| inner.downcast_ref::<ReadError>());
    read.map_or_else(|| Unusable::Local(chain(error)), classify)
}

fn classify(error: &ReadError) -> Unusable {
    let reason = chain(error);
    match error {
        ReadError::Corrupt { .. } => Unusable::Corrupt(reason),
        ReadError::Missing => Unusable::Missing(reason),
        ReadError::Transient { .. } => Unusable::Local(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlast_types::{CheckpointSeq, Digest};

    #[test]
    fn only_bad_or_missing_bytes_everywhere_count_as_corrupt() {
        let from = RestoreFrom {
            seq: CheckpointSeq(7),
            step: 1,
            attempt: "j1/0@1.1".parse().expect("valid"),
            root: Digest([0; 32]),
            size_bytes: 0,
            holders: Vec::new(),
            stored: false,
        };
        let said = |unusable: Unusable| {
            verdict(&from, &[("a".into(), Unusable::Missing("m".into())), ("b".into(), unusable)])
        };
        assert!(said(Unusable::Corrupt("c".into())).corrupt);
        let away = said(Unusable::Transient("timeout".into()));
        assert!(!away.corrupt && away.reason.contains("b: cannot be read now (timeout)"), "{away}");
        assert!(!said(Unusable::Local("disk".into())).corrupt);
    }
}
