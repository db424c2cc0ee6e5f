//! How the node's disk fares: a small file is written and synced once a second on a thread of its own, so that a hung
//! disk is seen, and told with each heartbeat, while nothing waits for it. Owns `canary`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use outlast_process::boot_now;
use outlast_types::{BootTime, Millis};

const FILE_NAME: &str = "canary";
const BLOCK: [u8; 4096] = [0x5a; 4096];
const PERIOD: Duration = Duration::from_secs(1);

/// What the canary saw.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    /// The end of the last sync that worked, on the boot clock; the agent's start before the first.
    good_at_ms: AtomicU64,
    free_bytes: AtomicU64,
    size_bytes: AtomicU64,
}

impl DiskWatch {
    /// Waits for nothing: a disk that is hung already must not keep the agent from starting and saying so. The thread
    /// ends when the last handle is gone.
    pub(crate) fn start(folder: &Path) -> Arc<Self> {
        let watch = Arc::new(Self {
            good_at_ms: AtomicU64::new(boot_now().0),
            free_bytes: AtomicU64::new(0),
            size_bytes: AtomicU64::new(0),
        });
        let (weak, folder) = (Arc::downgrade(&watch), folder.to_owned());
        let thread = std::thread::Builder::new().name("disk-canary".to_owned());
        thread.spawn(move || keep_watching(&weak, &folder)).expect("a thread can be started");
        watch
    }

    /// Time since the last sync that worked.
    pub(crate) fn canary_age_ms(&self) -> Millis {
        boot_now().since(BootTime(self.good_at_ms.load(Ordering::Relaxed)))
    }
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }
    /// 0: not known.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    fn look(&self, folder: &Path) -> io::Result<()> {
        let found = rustix::fs::statvfs(folder)?;
        // What is kept back for root is not for workers.
        self.free_bytes.store(found.f_bavail.saturating_mul(found.f_frsize), Ordering::Relaxed);
        self.size_bytes.store(found.f_blocks.saturating_mul(found.f_frsize), Ordering::Relaxed);
        write(&folder.join(FILE_NAME))?;
        self.good_at_ms.store(boot_now().0, Ordering::Relaxed);
        Ok(())
    }
}

fn write(path: &PathBuf) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all_at(&BLOCK, 0)?;
    Ok(rustix::fs::fdatasync(&file)?)
}

fn keep_watching(watch: &Weak<DiskWatch>, folder: &Path) {
    let mut is_bad = false;
    while let Some(watch) = watch.upgrade() {
        let seen = watch.look(folder);
        if let Err(error) = &seen
            && !is_bad
        {
            tracing::error!(folder = %folder.display(), %error, "the disk canary could not write: is the disk full or broken?");
        }
        is_bad = seen.is_err();
        drop(watch);
        std::thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> DiskWatch {
        DiskWatch {
            good_at_ms: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            size_bytes: AtomicU64::new(0),
        }
    }

    #[test]
    fn a_write_that_works_makes_the_canary_young_and_one_that_does_not_lets_it_age() {
        let folder = tempfile::tempdir().expect("a folder");
        let watch = watch();
        let age = watch.canary_age_ms();
        assert!(watch.look(&folder.path().join("nowhere")).is_err());
        assert!(watch.canary_age_ms() >= age);
        watch.look(folder.path()).expect("a disk");
        assert!(watch.good_at_ms.load(Ordering::Relaxed) > 0);
        assert!(watch.size_bytes() >= watch.free_bytes());
        // In the way of the file, as a disk that takes nothing is.
        let seen_at = watch.good_at_ms.load(Ordering::Relaxed);
        std::fs::remove_file(folder.path().join(FILE_NAME)).expect("written");
        std::fs::create_dir(folder.path().join(FILE_NAME)).expect("made");
        assert!(watch.look(folder.path()).is_err());
        assert_eq!(watch.good_at_ms.load(Ordering::Relaxed), seen_at);
    }
}
