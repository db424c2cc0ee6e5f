//! What lies on the nodes' disks at the end: bytes of checkpoints, by the log's own names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bed::Bed;
use crate::history::{FinalJob, Kept, Recorder, What};

/// Removals are ordered as soon as the log has decided; a copy that was under way ends first.
const TIDY_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Waits until the disks hold nothing that they may not, and records what they hold then, or in the end.
pub(super) async fn look(bed: &Bed, recorder: &Recorder, jobs: &[FinalJob]) {
    let began = Instant::now();
    let mut kept = read(bed);
    while kept.iter().any(|kept| !kept.may_stay(jobs)) && began.elapsed() < TIDY_MAX {
        tokio::time::sleep(LOOK_EVERY).await;
        kept = read(bed);
    }
    for kept in kept {
        recorder.put(What::Kept(kept));
    }
}

fn read(bed: &Bed) -> Vec<Kept> {
    let agents: Vec<(String, PathBuf)> =
        bed.cluster().agents.iter().map(|agent| (agent.name.clone(), agent.folder.join("shards"))).collect();
    agents.iter().flat_map(|(node, shards)| of_node(node, shards)).collect()
}

/// One for each checkpoint that has files, and one for files that are still being written.
fn of_node(node: &str, shards: &Path) -> Vec<Kept> {
    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for file in entries(&shards.join("tmp")) {
        found.entry(<_>::default()).or_default().insert(name(&file));
    }
    for attempt in entries(&shards.join("blobs")) {
        let job = name(&attempt).split('.').next().unwrap_or_default().to_owned();
        for checkpoint in entries(&attempt) {
            let files = entries(&checkpoint).iter().map(|file| name(file)).collect::<BTreeSet<_>>();
            if !files.is_empty() {
                found.entry((job.clone(), name(&checkpoint))).or_default().extend(files);
            }
        }
    }
    let kept = |((job, checkpoint), files): ((String, String), BTreeSet<String>)| Kept {
        node: node.to_owned(),
        job,
        checkpoint,
        files: files.into_iter().collect(),
    };
    found.into_iter().map(kept).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_checkpoint_and_half_written_ones_by_none() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in ["blobs/j1.0.1.3/ck4/0-aa", "blobs/j1.0.1.3/ck4/0-aa.seal", "tmp/7"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "").expect("written");
        }
        fs::create_dir_all(folder.path().join("blobs/j1.0.1.3/ck3")).expect("made");
        let found = of_node("n1", folder.path());
        let told: Vec<_> =
            found.iter().map(|k| (k.job.as_str(), k.checkpoint.as_str(), k.files.len())).collect();
        assert_eq!(told, [("", "", 1), ("j1", "ck4", 2)]);
    }
}
