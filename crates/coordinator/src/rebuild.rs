//! Coordinators' folders made from old data, offline: from a backup, from the one survivor of a lost majority, or from
//! what outlived every coordinator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use outlast_consensus::{Backup, NewCluster, RebuildError, Rebuilt, Survivor};
use outlast_control::state::ClusterState;
use outlast_proto::status::Failure;
use outlast_types::{ClusterId, Profile};

use crate::founder::PROFILE_FILE;

/// Makes the first coordinator of a new cluster from a backup; `address` is where others will reach it.
///
/// # Errors
/// See [`RebuildError`].
pub fn restore(dir: &Path, backup: Backup, address: &str) -> Result<Rebuilt, RebuildError> {
    let head = &backup.head;
    let reason = format!(
        "restored from a backup of cluster {}, made at entry {} ({})",
        head.cluster_id, head.last.index, head.at
    );
    let new = new_cluster(head.profile, address, reason)?;
    outlast_consensus::restore_folder(dir, backup, new)
}

/// Makes the first coordinator of a new cluster from what a survivor knows, in the survivor's place. Says where the old
/// folder is kept.
///
/// # Errors
/// See [`RebuildError`].
pub fn recover(survivor: Survivor, address: &str) -> Result<(Rebuilt, PathBuf), RebuildError> {
    let profile = survivor.state().config.as_ref().map(|config| config.profile);
    let reason = format!(
        "recovered from {} of cluster {}, up to entry {}",
        survivor.coordinator,
        survivor.cluster_id,
        survivor.index()
    );
    let new = new_cluster(profile.unwrap_or_default(), address, reason)?;
    survivor.become_cluster(new)
}

/// Makes the first coordinator of a new cluster from what a bucket or agents told of an old one; `from` says which.
///
/// # Errors
/// See [`RebuildError`].
pub fn restore_remains(
    dir: &Path,
    state: ClusterState,
    from: &str,
    address: &str,
) -> Result<Rebuilt, RebuildError> {
    let config = state.config.as_ref().ok_or(RebuildError::NoCluster)?;
    let reason = format!(
        "restored from the sealed checkpoints of cluster {} that {from} told of: {} jobs",
        config.cluster_id,
        state.jobs.len()
    );
    let new = new_cluster(config.profile, address, reason)?;
    outlast_consensus::state_folder(dir, state, new)
}

fn new_cluster(profile: Profile, address: &str, reason: String) -> Result<NewCluster, RebuildError> {
    let random = crate::control_api::random_hex();
    let random =
        random.map_err(|failure: Failure| RebuildError::Disk(std::io::Error::other(failure.to_string())))?;
    let cluster_id = ClusterId::new(format!("c-{random}")).expect("letters and digits only");
    let files = BTreeMap::from([(PROFILE_FILE.to_owned(), profile.to_string().into_bytes())]);
    Ok(NewCluster { cluster_id, address: address.to_owned(), reason, files })
}
