//! The disk canary: writes and syncs a small file once a second on a thread of its own, so that a hung disk is seen even
//! when everything else waits for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use outlast_consensus::{Consensus, DiskRoom, RaftStatus};
use outlast_types::{BootTime, ByteSize, CoordinatorId, Millis, Profile, Timers};

use crate::clock::boot_now;

const FILE_NAME: &str = "canary";
const BLOCK: [u8; 4096] = [0x5a; 4096];
const PERIOD: Duration = Duration::from_secs(1);
/// A disk that has not finished a small write for so long is hung, or as good as.
pub(crate) const HUNG_AFTER_MS: Millis = 5_000;

/// What the canary saw.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    /// The end of the last sync that worked, on the boot clock.
    good_at_ms: AtomicU64,
}

impl DiskWatch {
    /// Probes the disk once, then starts the thread, which ends when the last handle is gone.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub(crate) fn start(folder: &Path) -> io::Result<Arc<Self>> {
        let path = folder.join(FILE_NAME);
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        probe(&file)?;
        let watch = Arc::new(Self { good_at_ms: AtomicU64::new(boot_now().0) });
        let weak = Arc::downgrade(&watch);
        outlast_host::every("disk-canary", PERIOD, move || look(&weak, &file))?;
        Ok(watch)
    }

    /// Time since the last sync that worked.
    pub(crate) fn age_ms(&self) -> Millis {
        boot_now().since(BootTime(self.good_at_ms.load(Ordering::Relaxed)))
    }
}

/// What to tell people where the log's disk does not fit the timers. What it did beside checkpoints counts more than what
/// it did alone.
pub(crate) fn warning(status: &RaftStatus, profile: Profile) -> Option<String> {
    let beside = status.probe_loaded.and_then(|times| {
        let what = format!("beside checkpoint-like writes (99.9th percentile of {})", times.samples);
        slow_disk(times.p999_us as f64 / 1_000.0, &what, profile)
    });
    beside.or_else(|| slow_disk(p99_ms(status), "(99th percentile)", profile))
}

/// What to tell people where the log's disk has too little room for a leader.
pub(crate) fn room_warning(room: DiskRoom, id: CoordinatorId) -> Option<String> {
    let DiskRoom { free_bytes, needed_bytes } = room;
    room.is_short().then(|| {
        format!(
            "the disk of {id} has {} free and needs {}: {id} takes no commands when it leads, and ends when the disk is \
             full; make room there",
            ByteSize(free_bytes),
            ByteSize(needed_bytes)
        )
    })
}

/// Says at start what the disk cannot do: what was measured before serving at once, the rest when it is measured.
/// A member that leaves drops nothing by this: it ends with the measurement.
pub(crate) async fn warn_when_measured(consensus: Consensus, profile: Profile) {
    let alone = warning(&consensus.status(), profile);
    if let Some(warning) = &alone {
        tracing::warn!("{warning}");
    }
    let mut measured = consensus.probe_loaded();
    // An error: it is not measured here.
    if measured.wait_for(Option::is_some).await.is_err() {
        return;
    }
    if let Some(warning) = warning(&consensus.status(), profile).filter(|now| Some(now) != alone.as_ref()) {
        tracing::warn!("{warning}");
    }
}

/// 99th percentile of the log's syncs, in milliseconds.
pub(crate) fn p99_ms(status: &RaftStatus) -> f64 {
    status.probe.p99_us.max(status.sync.p99_us) as f64 / 1_000.0
}

/// An fsync stands in the way of every commit: it must be done before the next heartbeat of Raft is due.
fn slow_disk(took_ms: f64, measured: &str, profile: Profile) -> Option<String> {
    let bound_ms = Timers::of(profile).raft_heartbeat_ms;
    if took_ms <= bound_ms as f64 {
        return None;
    }
    let advice = match profile {
        Profile::Lan => {
            "give the data folder a faster disk or one of its own, or make the cluster with `cluster init --profile wan`"
        }
        Profile::Wan => "give the data folder a faster disk or one of its own",
    };
    Some(format!(
        "the disk under the data folder needs {took_ms:.0} ms for a sync {measured}; the profile {profile} expects at \
         most {bound_ms} ms, so leaders may change without need: {advice}"
    ))
}

fn probe(file: &File) -> io::Result<()> {
    file.write_all_at(&BLOCK, 0)?;
    Ok(rustix::fs::fdatasync(file)?)
}

/// Whether somebody still wants to know.
fn look(watch: &Weak<DiskWatch>, file: &File) -> bool {
    if watch.strong_count() == 0 {
        return false;
    }
    let outcome = probe(file);
    let Some(watch) = watch.upgrade() else { return false };
    match outcome {
        Ok(()) => watch.good_at_ms.store(boot_now().0, Ordering::Relaxed),
        Err(error) => tracing::error!(%error, "the disk canary could not write: is the disk full or broken?"),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_named_with_the_profile_that_would_fit() {
        assert_eq!(slow_disk(20.0, "", Profile::Lan), None);
        let warning = slow_disk(180.0, "beside checkpoints", Profile::Lan).expect("too slow");
        for part in ["180 ms", "beside checkpoints", "at most 100 ms", "--profile wan"] {
            assert!(warning.contains(part), "{warning}");
        }
        assert_eq!(slow_disk(180.0, "", Profile::Wan), None);
    }

    #[test]
    fn a_disk_without_room_is_told_with_what_is_needed() {
        let room = |free_bytes| DiskRoom { free_bytes, needed_bytes: 512 << 20 };
        assert_eq!(room_warning(room(1 << 30), CoordinatorId(2)), None);
        let warning = room_warning(room(3 << 20), CoordinatorId(2)).expect("short");
        for part in ["c2 has 3MiB free and needs 512MiB", "make room"] {
            assert!(warning.contains(part), "{warning}");
        }
    }

    #[test]
    fn the_canary_writes_where_it_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let watch = DiskWatch::start(folder.path()).expect("a disk");
        assert!(watch.age_ms() < 60_000);
        assert!(DiskWatch::start(&folder.path().join("nowhere")).is_err());
    }
}
