//! What the disk can do, measured at start: fdatasync of small appends as the log makes them, first alone, then beside
//! writes as an agent on the same disk makes them for checkpoints.
//!
//! ```text
//!  start ──► alone (before the log opens: short) ──► serving ──► beside checkpoints (a thread of its own, bounded)
//! ```
//! The second one is what counts: timers that hold on a quiet disk may not hold on the same disk at work.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::SyncTimes;
use crate::folder::DiskRoom;

const APPEND: [u8; 512] = [0x5a; 512];
/// Enough for a p99 that means something, short enough for a start.
const ALONE_APPENDS: usize = 50;
/// A disk this slow needs no more samples.
const ALONE_TIME_MAX: Duration = Duration::from_secs(3);
/// Only a disk in memory gets so far; it would fill up with appends.
const BESIDE_APPENDS_MAX: usize = 20_000;
/// Some hundred syncs of a usual disk. The last extent is finished beyond it.
const BESIDE_TIME_MAX: Duration = Duration::from_millis(1_500);
/// Agents write checkpoints in extents of this size.
const EXTENT_BYTES: usize = 16 << 20;
/// The page cache takes less than this without any disk; more would wear it out for nothing.
const LOAD_BYTES_MAX: usize = 8 * EXTENT_BYTES;
/// Written at a time, so that the end is noticed soon.
const PIECE_BYTES: usize = 1 << 20;

/// Measures fdatasync of small appends on a disk that is left alone otherwise.
///
/// # Errors
/// What the disk reports.
pub(crate) fn probe_alone(dir: &Path) -> io::Result<SyncTimes> {
    let began = Instant::now();
    append(&dir.join("probe.tmp"), |done| done >= ALONE_APPENDS || began.elapsed() > ALONE_TIME_MAX)
}

/// Measures the same while extents are written and synced beside it. `None` where there is no room for them.
///
/// # Errors
/// What the disk reports.
pub(crate) fn probe_beside_checkpoints(dir: &Path) -> io::Result<Option<SyncTimes>> {
    let room = DiskRoom::of(dir)?;
    if room.free_bytes < room.needed_bytes + 2 * LOAD_BYTES_MAX as u64 {
        return Ok(None);
    }
    let began = Instant::now();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| write_extents(&dir.join("probe-load.tmp"), &enough));
        let measured = append(&dir.join("probe.tmp"), |done| {
            done >= BESIDE_APPENDS_MAX || load.is_finished() || began.elapsed() > BESIDE_TIME_MAX
        });
        enough.store(true, Ordering::Relaxed);
        load.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes extents panicked")))?;
        measured.map(Some)
    })
}

/// Appends and syncs until `enough` of the appends are made, at least one; leaves no file.
fn append(path: &Path, enough: impl Fn(usize) -> bool) -> io::Result<SyncTimes> {
    let mut file = File::create(path)?;
    let mut samples = Vec::new();
    let mut step = || -> io::Result<()> {
        file.write_all(&APPEND)?;
        let began = Instant::now();
        file.sync_data()?;
        samples.push(began.elapsed().as_micros() as u64);
        Ok(())
    };
    let mut done = 1;
    let mut outcome = step();
    while outcome.is_ok() && !enough(done) {
        outcome = step();
        done += 1;
    }
    std::fs::remove_file(path)?;
    outcome.map(|()| SyncTimes::of(samples))
}

/// Writes and syncs extents until there is enough; leaves no file.
fn write_extents(path: &Path, enough: &AtomicBool) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0xa5; PIECE_BYTES];
    let mut write = || -> io::Result<()> {
        for number in 1..=LOAD_BYTES_MAX / PIECE_BYTES {
            if enough.load(Ordering::Relaxed) {
                break;
            }
            file.write_all(&piece)?;
            if number % (EXTENT_BYTES / PIECE_BYTES) == 0 {
                file.sync_all()?;
            }
        }
        Ok(())
    };
    let outcome = write();
    std::fs::remove_file(path)?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_probes_measure_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().expect("temp dir");
        let alone = probe_alone(dir.path()).expect("a disk");
        assert!(alone.samples > 0 && alone.p50_us <= alone.p99_us, "{alone:?}");
        if let Some(beside) = probe_beside_checkpoints(dir.path()).expect("a disk") {
            assert!(beside.samples > 0 && beside.p50_us <= beside.p999_us, "{beside:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
        assert!(probe_alone(&dir.path().join("nowhere")).is_err());
    }
}
