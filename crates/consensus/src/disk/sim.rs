//! A disk in memory that can lose what was not synced, tear it, fill up, fail, lie and be slow.
//!
//! Every fault is data and the losses follow a seed, so a failing run can be repeated. The contents outlive the disk
//! object: [`SimContents`] is opened again after a "crash".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{DiskOp, DiskReader, MetaKey, RaftDisk, Record, check, frame};

/// What goes wrong, and when.
#[derive(Clone, Debug, Default)]
pub struct SimFaults {
    /// How long each sync takes.
    pub sync_latency: Duration,
    /// Syncs do not return until this is taken back.
    pub sync_hangs: bool,
    /// The sync with this number (from 1) and all later ones fail with `EIO`.
    pub sync_fails_at: Option<u64>,
    /// Staging beyond this many bytes fails with `ENOSPC`.
    pub capacity_bytes: Option<u64>,
    /// Syncs report success and make nothing durable.
    pub lying_sync: bool,
    /// A crash leaves the first lost group half written, its last record damaged.
    pub torn_writes: bool,
    /// Reads fail with `EIO`.
    pub reads_fail: bool,
}

#[derive(Clone, Debug, Default)]
struct Image {
    meta: BTreeMap<MetaKey, Vec<u8>>,
    records: BTreeMap<u64, Record>,
    rotten: BTreeSet<u64>,
}

impl Image {
    fn apply(&mut self, op: &DiskOp) {
        match op {
            DiskOp::Append(records) => {
                for record in records {
                    self.rotten.remove(&record.mark.index);
                    self.records.insert(record.mark.index, record.clone());
                }
            }
            DiskOp::Truncate { from } => {
                self.records.split_off(from);
            }
            DiskOp::Purge { to } => self.records = self.records.split_off(&(to + 1)),
            DiskOp::Put { key, value } => {
                self.meta.insert(*key, value.clone());
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    durable: Image,
    visible: Image,
    /// Staged since the last sync, one vector a group.
    pending: Vec<Vec<DiskOp>>,
    staged_bytes: u64,
    syncs: u64,
    faults: SimFaults,
    closed: bool,
}

/// The platters: survive crashes and are shared by everything that looks at the disk.
#[derive(Clone, Debug, Default)]
pub struct SimContents(Arc<Mutex<State>>);

impl SimContents {
    /// An empty log that belongs to a coordinator.
    pub fn create(cluster_id: &str, coordinator: u64) -> Self {
        let contents = Self::default();
        contents.format(cluster_id, coordinator);
        contents
    }

    /// Makes it a coordinator's; what is on it stays.
    pub fn format(&self, cluster_id: &str, coordinator: u64) {
        let mut state = self.0.lock();
        let meta = [
            (MetaKey::Format, check::encode(&check::FORMAT)),
            (MetaKey::Cluster, check::encode(&cluster_id)),
            (MetaKey::Coordinator, check::encode(&coordinator)),
        ];
        state.durable.meta.extend(meta.clone());
        state.visible.meta.extend(meta);
    }

    pub fn set_faults(&self, faults: SimFaults) {
        self.0.lock().faults = faults;
    }

    /// How many syncs were asked for.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Damages one stored record, as a flipped bit would.
    pub fn rot(&self, index: u64) {
        let mut state = self.0.lock();
        state.durable.rotten.insert(index);
        state.visible.rotten.insert(index);
    }

    /// Power goes: some of the groups that were not synced survive, in order; how many follows from `seed`.
    pub fn crash(&self, seed: u64) {
        let mut state = self.0.lock();
        let pending = std::mem::take(&mut state.pending);
        let kept = (splitmix(seed) % (pending.len() as u64 + 1)) as usize;
        let mut image = std::mem::take(&mut state.durable);
        pending[..kept].iter().flatten().for_each(|op| image.apply(op));
        if let Some(torn) = pending.get(kept).filter(|_| state.faults.torn_writes) {
            tear(&mut image, torn);
        }
        state.visible = image.clone();
        state.durable = image;
        state.closed = true;
    }

    /// Power goes, and nothing that was not really synced survives.
    pub fn lose_unsynced(&self) {
        let mut state = self.0.lock();
        state.pending.clear();
        state.visible = state.durable.clone();
        state.closed = true;
    }

    /// A disk on these contents; disks opened earlier are dead from now on.
    pub fn open(&self) -> SimDisk {
        self.0.lock().closed = false;
        SimDisk(self.clone())
    }
}

fn tear(image: &mut Image, group: &[DiskOp]) {
    for op in group {
        image.apply(op);
        if let DiskOp::Append(records) = op {
            image.rotten.extend(records.last().map(|record| record.mark.index));
            return;
        }
    }
}

/// One step of splitmix64: enough to spread small seeds.
fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub struct SimDisk(SimContents);

/// How soon a hanging sync notices that it may go on.
const HANG_LOOK: Duration = Duration::from_millis(5);

fn closed() -> io::Error {
    io::Error::other("the simulated machine is off")
}

impl RaftDisk for SimDisk {
    fn stage(&mut self, ops: &[DiskOp]) -> io::Result<()> {
        let mut state = self.0.0.lock();
        if state.closed {
            return Err(closed());
        }
        let bytes: usize = ops.iter().map(size_of_op).sum();
        state.staged_bytes += bytes as u64;
        if state.faults.capacity_bytes.is_some_and(|capacity| state.staged_bytes > capacity) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        ops.iter().for_each(|op| state.visible.apply(op));
        state.pending.push(ops.to_vec());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let latency = self.0.0.lock().faults.sync_latency;
        std::thread::sleep(latency);
        let mut state = self.0.0.lock();
        while state.faults.sync_hangs && !state.closed {
            drop(state);
            std::thread::sleep(HANG_LOOK);
            state = self.0.0.lock();
        }
        if state.closed {
            return Err(closed());
        }
        state.syncs += 1;
        if state.faults.sync_fails_at.is_some_and(|at| state.syncs >= at) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        if !state.faults.lying_sync {
            let pending = std::mem::take(&mut state.pending);
            pending.iter().flatten().for_each(|op| state.durable.apply(op));
        }
        Ok(())
    }

    fn reader(&self) -> Arc<dyn DiskReader> {
        Arc::new(self.0.clone())
    }
}

fn size_of_op(op: &DiskOp) -> usize {
    match op {
        DiskOp::Append(records) => records.iter().map(|record| record.payload.len() + 64).sum(),
        DiskOp::Put { value, .. } => value.len() + 64,
        DiskOp::Truncate { .. } | DiskOp::Purge { .. } => 0,
    }
}

impl DiskReader for SimContents {
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>> {
        let state = self.0.lock();
        if state.faults.reads_fail {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        let mut bytes = 0;
        let mut records = Vec::new();
        for (index, record) in state.visible.records.range(range) {
            if state.visible.rotten.contains(index) {
                return Err(frame::damaged(format!("record {index} is rotten")));
            }
            bytes += record.payload.len();
            records.push(record.clone());
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(records)
    }

    fn meta(&self, key: MetaKey) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().visible.meta.get(&key).cloned())
    }

    fn bounds(&self) -> io::Result<Option<(u64, u64)>> {
        let state = self.0.lock();
        let records = &state.visible.records;
        Ok(records.first_key_value().zip(records.last_key_value()).map(|(first, last)| (*first.0, *last.0)))
    }

    fn close(&self) {}
}
