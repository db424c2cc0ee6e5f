//! A bucket's `COMMIT`s, and which of the bundles that are named are there too.

use std::collections::BTreeSet;

use outlast_blobs::objects::{FoundCheckpoint, FoundState, ObjectTier, RequestError};
use outlast_control::state::{LeftOut, Remains, SealSource};

use super::seal::found_seal;

pub(super) async fn find(tier: &ObjectTier, remains: &mut Remains) -> Result<(), RequestError> {
    for FoundCheckpoint { attempt, seq, state } in tier.list_committed().await? {
        remains.numbers.insert((attempt, seq));
        let seal = match state {
            FoundState::Committed(committed) => {
                found_seal(&committed.record, &committed.manifest, SealSource::Store)
            }
            FoundState::Damaged { reason } => Err(format!("in the object store: {reason}")),
            // Under way when the cluster was lost, or being removed: agents may still have all of it.
            FoundState::Incomplete { .. } => continue,
        };
        match seal {
            Ok(seal) => remains.seals.push(seal),
            Err(reason) => {
                let (job, checkpoint) = (Some(attempt.group.job), Some(seq));
                remains.damaged.push(LeftOut { job, checkpoint, reason });
            }
        }
    }
    let named: BTreeSet<_> = remains.seals.iter().filter_map(|seal| seal.bundle).collect();
    for (digest, size_bytes) in named {
        if tier.has_bundle(digest, size_bytes).await? {
            remains.stored_bundles.insert(digest);
        }
    }
    Ok(())
}
