//! How long the folders of ended workers stay: their logs are of use after the end, but not for ever.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use outlast_types::{AttemptId, JobId};

use super::folder::{WorkerDir, remove_dir};

/// Newest attempts of a job whose logs stay on this node. A log is bounded by its keeper, so this bounds the bytes.
const ATTEMPTS_KEPT: usize = 20;

/// Of all jobs together, the folders that ended last. Jobs come and go, and this agent is not told when one expires.
const ENDED_KEPT: usize = 1_000;
/// All logs of ended workers together. One worker's log has 128 MiB at most.
const ENDED_BYTES_KEPT: u64 = 4 << 30;

/// Removes the folders of ended workers beyond the newest attempts of each job, and beyond what a node has room for.
/// Blocks on the disk.
pub(crate) fn keep_newest_logs(workers: &Path) {
    keep_newest_attempts(workers);
    keep_newest_ended(workers, ENDED_KEPT, ENDED_BYTES_KEPT);
}

fn keep_newest_ended(workers: &Path, count_kept: usize, bytes_kept: u64) {
    let ended_at =
        |dir: &WorkerDir| fs::metadata(dir.root().join("over")).and_then(|over| over.modified()).ok();
    let mut ended: Vec<_> =
        worker_dirs(workers).into_iter().filter_map(|dir| Some((ended_at(&dir)?, dir))).collect();
    ended.sort_by(|(one, _), (other, _)| other.cmp(one));
    let mut bytes = 0;
    for (place, (_, dir)) in ended.iter().enumerate() {
        bytes += log_bytes(dir);
        // The newest one stays whatever it weighs: somebody is about to ask why it ended.
        if place > 0 && (place >= count_kept || bytes > bytes_kept) {
            remove(dir.root());
        }
    }
}

fn log_bytes(dir: &WorkerDir) -> u64 {
    let Ok(segments) = fs::read_dir(dir.keeper().join("log")) else { return 0 };
    segments.flatten().filter_map(|segment| Some(segment.metadata().ok()?.len())).sum()
}

fn remove(dir: &Path) {
    if remove_dir(dir).is_err() {
        tracing::warn!(path = %dir.display(), "an old worker's folder cannot be removed");
    }
}

fn keep_newest_attempts(workers: &Path) {
    let mut jobs: BTreeMap<JobId, BTreeMap<AttemptId, Vec<PathBuf>>> = BTreeMap::new();
    for dir in worker_dirs(workers) {
        let Ok(Some(record)) = dir.read_record() else { continue };
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
            if WorkerDir::at(path.clone()).is_over() {
                remove(&path);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_workers_leave_no_more_than_a_node_has_room_for_and_living_ones_stay() {
        let tmp = tempfile::tempdir().expect("a folder");
        for name in ["a", "b", "c", "alive"] {
            let log = tmp.path().join(name).join("keeper/log");
            fs::create_dir_all(&log).expect("made");
            fs::write(log.join("000001.seg"), [0; 100]).expect("written");
            if name != "alive" {
                fs::write(tmp.path().join(name).join("over"), b"").expect("written");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        let left = || {
            let names = worker_dirs(tmp.path()).into_iter().map(|dir| dir.root().to_owned());
            names.map(|path| path.file_name().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        keep_newest_ended(tmp.path(), 3, 300);
        assert_eq!(left(), ["a", "alive", "b", "c"]);
        keep_newest_ended(tmp.path(), 2, 300);
        assert_eq!(left(), ["alive", "b", "c"], "too many");
        keep_newest_ended(tmp.path(), 9, 10);
        assert_eq!(left(), ["alive", "c"], "too much, but the newest stays");
    }
}
