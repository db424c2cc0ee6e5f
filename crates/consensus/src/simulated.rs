//! The machines of a simulation, as consensus meets them: by the data folder, the disk under the log and what happens when a
//! coordinator cannot go on. One simulation runs in one thread, so each thread has its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{ConsensusConfig, DiskChoice, Limits};
use crate::disk::sim::SimContents;
use crate::fatal::FatalHook;

#[derive(Clone)]
pub struct SimMachine {
    pub log: SimContents,
    pub limits: Limits,
    pub fatal: FatalHook,
}

thread_local! {
    static MACHINES: RefCell<BTreeMap<PathBuf, SimMachine>> = const { RefCell::new(BTreeMap::new()) };
    static SLOWEST_MS: Cell<u64> = const { Cell::new(3) };
}

/// Coordinators with this folder run on this machine from now on.
pub fn put(data_dir: &Path, machine: SimMachine) {
    MACHINES.with_borrow_mut(|machines| machines.insert(data_dir.to_owned(), machine));
}

/// Half of what a write takes at most, on every disk.
pub fn set_slowest(ms: u64) {
    SLOWEST_MS.set(ms.max(1));
}

pub(crate) fn pause() -> Duration {
    Duration::from_millis(1 + number() % SLOWEST_MS.get())
}

fn number() -> u64 {
    outlast_host::random::number().unwrap_or_default()
}

pub(crate) fn equipped(mut config: ConsensusConfig) -> ConsensusConfig {
    if let Some(machine) = MACHINES.with_borrow(|machines| machines.get(&config.data_dir).cloned()) {
        config.disk = DiskChoice::Sim(machine.log);
        config.limits = machine.limits;
        config.fatal = machine.fatal;
    }
    config
}

/// openraft draws its election timeout from the system's numbers; here it is given no choice.
pub(crate) fn drawn(mut config: openraft::Config) -> openraft::Config {
    let (min, max) = (config.election_timeout_min, config.election_timeout_max);
    config.election_timeout_min = min + number() % (max - min);
    config.election_timeout_max = config.election_timeout_min + 1;
    config
}
