//! Full disks. Needs root for a small tmpfs of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use outlast_local::Builder;

use super::harness::{Outlast, digest, digits, exe, is_root, undisturbed_digest};

/// A small file system, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("the mount point can be made");
        let options = format!("size={size},mode=0700");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "outlast-test"]).arg(path).status();
        assert!(status.expect("mount runs").success(), "the tmpfs must mount");
        Self(path.to_path_buf())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: processes that are still ending may hold files.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn disk_full_at_the_agent_skips_checkpoints_but_training_goes_on() {
    if !is_root() {
        println!("skipped: a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("n1"), "24m");
    let builder = Builder::new(exe()).coordinators(1).agents(1).folder(folder.path());
    let outlast = Outlast::start_with(builder);
    let result = folder.path().join("result.json");
    let job = outlast.submit(&digits("digits", 1, 20, &result));
    outlast.wait_job(&job, "a sealed checkpoint", |job| !job.sealed().is_empty());
    let filler = folder.path().join("n1/filler");
    let of = format!("of={}", filler.display());
    // It ends with "no space left": that is the point.
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k", "status=none", &of]).status();
    // Long enough for several checkpoints that cannot be written.
    std::thread::sleep(std::time::Duration::from_secs(3));
    std::fs::remove_file(&filler).expect("the filler goes");
    let done = outlast.wait_success(&job);
    assert_eq!(done.attempts().len(), 1, "a full disk must not end the training: {}", done.0);
    assert_eq!(digest(&result), undisturbed_digest(1, folder.path()));
    outlast.assert_nothing_left();
    drop(disk);
}
