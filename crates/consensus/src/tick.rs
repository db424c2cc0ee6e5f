//! What happens once a second: room on the disk is looked at, and a snapshot is asked for when enough was written since
//! the last one and there is room for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::config::Limits;
use crate::folder::DiskRoom;
use crate::machine::Machine;
use crate::types::Raft;

const EVERY: Duration = Duration::from_secs(1);
/// A snapshot of a large state takes seconds; asking more often would queue them.
const SNAPSHOT_EVERY_MIN: Duration = Duration::from_secs(10);

pub(crate) struct Ticker {
    pub(crate) root: PathBuf,
    pub(crate) room: Arc<RwLock<DiskRoom>>,
    pub(crate) log_dir: PathBuf,
    pub(crate) log_bytes: Arc<AtomicU64>,
    pub(crate) machine: Machine,
    pub(crate) raft: Raft,
    pub(crate) limits: Limits,
}

impl Ticker {
    /// Until the runtime ends.
    pub(crate) async fn run(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut asked_at: Option<Instant> = None;
        let mut was_short = false;
        loop {
            every.tick().await;
            was_short = self.look_at_room(was_short);
            let rested = asked_at.is_none_or(|at| at.elapsed() >= SNAPSHOT_EVERY_MIN);
            // Snapshots stop before the log does: without room, one that fails would end the process.
            if rested && self.wants_snapshot() && !self.room.read().is_short() {
                asked_at = Some(Instant::now());
                if self.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Whether it is short now.
    fn look_at_room(&self, was_short: bool) -> bool {
        self.log_bytes.store(bytes_in(&self.log_dir), Ordering::Relaxed);
        let room = match DiskRoom::of(&self.root) {
            Ok(room) => room,
            Err(err) => {
                tracing::warn!(%err, "room on the disk cannot be asked for");
                return was_short;
            }
        };
        *self.room.write() = room;
        let DiskRoom { free_bytes, needed_bytes } = room;
        match (was_short, room.is_short()) {
            (false, true) => tracing::error!(
                free_bytes,
                needed_bytes,
                "the disk is nearly full: as leader this coordinator takes no commands until there is room; make room"
            ),
            (true, false) => tracing::warn!(free_bytes, needed_bytes, "the disk has room again"),
            _ => {}
        }
        room.is_short()
    }

    fn wants_snapshot(&self) -> bool {
        if self.machine.shared.bytes_since_snapshot.load(Ordering::Relaxed) >= self.limits.snapshot_bytes {
            return true;
        }
        let (applied, snapshot) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.last_applied, metrics.snapshot)
        };
        let index = |id: Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        index(applied).saturating_sub(index(snapshot)) > self.limits.snapshot_entries
    }
}

/// Bytes of the files directly in a folder.
fn bytes_in(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum()
}
