//! A coordinator's host: the real service, started as `outlast coordinator` starts it, on a simulated machine.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_consensus::disk::sim::SimContents;
use outlast_consensus::simulated::{SimMachine, put};
use outlast_consensus::{FatalHook, Limits};
use outlast_coordinator::{Coordinator, CoordinatorConfig};
use tokio_util::sync::CancellationToken;

use crate::oracle::Shared;

pub(crate) const PORT: u16 = 7400;
const LOOK_EVERY: Duration = Duration::from_millis(30);
/// What supervises the real one waits as well.
const START_AGAIN_AFTER: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) log: SimContents,
    /// Why the process would have ended itself.
    pub(crate) died: Arc<Mutex<Option<String>>>,
    /// As of its last look; zero while it does not run.
    pub(crate) applied: Rc<Cell<u64>>,
    data_dir: PathBuf,
    founds: bool,
}

impl Machine {
    pub(crate) fn new(number: usize, root: &std::path::Path) -> Self {
        let name = format!("c{number}");
        let machine = Self {
            data_dir: root.join(&name),
            name,
            log: SimContents::default(),
            died: Arc::default(),
            applied: Rc::default(),
            founds: number == 1,
        };
        let died = Arc::clone(&machine.died);
        let fatal = FatalHook::new(move |reason| {
            died.lock().expect("nobody panics with it").get_or_insert(reason.to_owned());
        });
        // Small ones, so that a run of a minute makes snapshots, purges and sends them.
        let limits = Limits { snapshot_entries: 60, entries_kept: 20, ..Limits::default() };
        put(&machine.data_dir, SimMachine { log: machine.log.clone(), limits, fatal });
        machine
    }

    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.name)
    }

    /// Runs until the host crashes.
    pub(crate) async fn run(self, oracle: Shared) -> turmoil::Result {
        self.applied.set(0);
        loop {
            let config = CoordinatorConfig {
                data_dir: self.data_dir.clone(),
                listen: ([0, 0, 0, 0], PORT).into(),
                advertise: Some(self.address()),
                init: self.founds,
                join: if self.founds { Vec::new() } else { vec![format!("c1:{PORT}")] },
                insecure: true,
                disk_load_test: false,
                ..CoordinatorConfig::default()
            };
            let running = match Coordinator::start(config, CancellationToken::new()).await {
                Ok(running) => running,
                Err(err) => {
                    let why = chain(&err);
                    oracle.borrow_mut().note(format!("{} did not start: {why}", self.name));
                    if why.contains("quarantine") {
                        oracle.borrow_mut().broken(format!("10: {} lost what was durable: {why}", self.name));
                    }
                    tokio::time::sleep(START_AGAIN_AFTER).await;
                    continue;
                }
            };
            oracle.borrow_mut().note(format!("{} is up", self.name));
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                // No clone lives across an await: it would keep the folder's lock.
                let Some(consensus) = running.consensus() else { continue };
                self.applied.set(oracle.borrow_mut().look(&self.name, &consensus));
            }
        }
    }
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}
