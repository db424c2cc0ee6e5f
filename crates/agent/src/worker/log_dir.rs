//! How long the folders of ended workers stay: their logs are of use after the end, but not for ever.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use outlast_types::{AttemptId, JobId};

use super::folder::{WorkerDir, remove_dir};

/// Newest attempts of a job whose logs stay on this node. A log is bounded by its keeper, so this bounds the bytes.
const ATTEMPTS_KEPT: usize = 20;

/// Removes the folders of ended workers beyond the newest attempts of each job. Blocks on the disk.
pub(crate) fn keep_newest_logs(workers: &Path) {
    let mut jobs: BTreeMap<JobId, BTreeMap<AttemptId, Vec<PathBuf>>> = BTreeMap::new();
    for dir in worker_dirs(workers) {
        let Some(record) = dir.read_record() else { continue };
        let attempt = record.assigned.key.attempt;
        let attempts = jobs.entry(attempt.group.job).or_default();
        attempts.entry(attempt).or_default().push(dir.root().to_owned());
    }
    for attempts in jobs.into_values() {
        let mut oldest_first: Vec<_> = attempts.into_iter().collect();
        // By age, not by group: replicas of a service are groups of their own.
        oldest_first.sort_by_key(|(attempt, _)| (attempt.generation, attempt.number));
        let excess = oldest_first.len().saturating_sub(ATTEMPTS_KEPT);
        for path in oldest_first.into_iter().take(excess).flat_map(|(_, paths)| paths) {
            if WorkerDir::at(path.clone()).is_over() && remove_dir(&path).is_err() {
                tracing::warn!(path = %path.display(), "an old worker's folder cannot be removed");
            }
        }
    }
}

pub(crate) fn worker_dirs(workers: &Path) -> Vec<WorkerDir> {
    let Ok(entries) = fs::read_dir(workers) else { return Vec::new() };
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs.into_iter().map(WorkerDir::at).collect()
}
