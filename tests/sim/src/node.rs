//! The machines of the nodes: workers that count, each under its keeper, and shards on a disk. What is here outlives the
//! agent; what is not said to lie on the disk does not outlive a loss of power.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use outlast_blobs::ShardKey;
use outlast_host::boot_now;
use outlast_types::{AttemptId, BootTime, Digest, ExitStatus, GroupId};

use crate::assigned::{Assigned, WorkerKey};
use crate::oracle::Oracle;

/// One count of a worker.
const STEP_MS: u64 = 100;

/// A worker's process and its keeper.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) assigned: Assigned,
    from_step: u64,
    until_step: u64,
    began: BootTime,
    /// The keeper of an exclusive worker kills it then by itself.
    pub(crate) deadline: Option<BootTime>,
    stop_at: Option<BootTime>,
    pub(crate) saved_step: u64,
    end: Option<(ExitStatus, BootTime)>,
}

impl Proc {
    pub(crate) fn step(&self) -> u64 {
        let counted = self.from_step + boot_now().since(self.began) / STEP_MS;
        counted.min(self.until_step)
    }

    /// How it ended, if it has.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        if self.end.is_none() {
            let done =
                BootTime(self.began.0 + (self.until_step - self.from_step.min(self.until_step)) * STEP_MS);
            let ends = [
                Some((ExitStatus::Code(0), done)),
                self.deadline.map(|at| (ExitStatus::Fenced, at)),
                self.stop_at.map(|at| (ExitStatus::Signal(15), at)),
            ];
            let first = ends.into_iter().flatten().min_by_key(|(_, at)| *at);
            self.end = first.filter(|(_, at)| *at <= boot_now());
        }
        self.end.map(|(status, _)| status)
    }

    pub(crate) fn stop(&mut self, at: BootTime) {
        self.stop_at = Some(self.stop_at.map_or(at, |before| before.min(at)));
    }
}

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) boot: u32,
    pub(crate) procs: BTreeMap<WorkerKey, Proc>,
    // On its disk.
    pub(crate) cluster_id: String,
    pub(crate) acted_index: u64,
    /// How often it was registered.
    pub(crate) registrations: u64,
    /// Workers that were started and whose release the log does not have yet.
    pub(crate) folders: BTreeMap<WorkerKey, Assigned>,
    pub(crate) shards: BTreeMap<ShardKey, (Digest, u64)>,
}

impl Machine {
    pub(crate) fn lose_power(&mut self) {
        self.boot += 1;
        self.procs.clear();
    }

    pub(crate) fn start(&mut self, assigned: Assigned, from_step: u64, deadline: Option<BootTime>) {
        let until_step = assigned.command.get(1).and_then(|text| text.parse().ok()).unwrap_or(50);
        let deadline = deadline.filter(|_| assigned.exclusive);
        self.folders.insert(assigned.key, assigned.clone());
        let proc = Proc {
            from_step,
            until_step,
            began: boot_now(),
            deadline,
            stop_at: None,
            saved_step: from_step,
            end: None,
            assigned,
        };
        self.procs.insert(proc.assigned.key, proc);
    }
}

/// All machines, and what the observers remember of them.
#[derive(Default)]
pub(crate) struct Fleet {
    pub(crate) machines: BTreeMap<String, Machine>,
    pub(crate) started: u64,
    pub(crate) restored: u64,
}

pub(crate) type SharedFleet = Rc<RefCell<Fleet>>;

impl Fleet {
    /// Invariants 35 and 38: what is started begins at the newest sealed step, nowhere below.
    pub(crate) fn check_start(&mut self, assigned: &Assigned, from_step: u64, oracle: &mut Oracle) {
        self.started += 1;
        self.restored += u64::from(from_step > 0);
        let sealed = oracle.sealed_step(assigned.key.attempt.group.job);
        if from_step < sealed {
            oracle.broken(format!(
                "38: {} begins at step {from_step}, though {sealed} is sealed",
                assigned.key
            ));
        }
    }

    /// Invariant 23: workers of two attempts of an exclusive group never run at once.
    pub(crate) fn check_exclusive(&mut self, oracle: &mut Oracle) {
        let mut running = BTreeMap::<GroupId, BTreeSet<AttemptId>>::new();
        for proc in self.machines.values_mut().flat_map(|machine| machine.procs.values_mut()) {
            if proc.assigned.exclusive && proc.end().is_none() {
                let attempt = proc.assigned.key.attempt;
                running.entry(attempt.group).or_default().insert(attempt);
            }
        }
        if let Some((group, attempts)) = running.iter().find(|(_, attempts)| attempts.len() > 1) {
            oracle.broken(format!("23: {group} runs as {attempts:?} at once"));
        }
    }
}
