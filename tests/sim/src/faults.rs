//! What goes wrong, drawn from the seed: crashes with the loss of what was not synced, links cut in one direction or both,
//! links that stand still, slow disks, the power of all coordinators, agents that die under their workers, and nodes that
//! lose power.

use std::time::Duration;

use outlast_consensus::disk::sim::SimFaults;
use outlast_consensus::simulated::set_slowest;
use turmoil::Sim;

use crate::coordinator::Machine;
use crate::node::SharedFleet;
use crate::oracle::Shared;
use crate::rng::Rng;

const DISK_MS: u64 = 3;
const SLOW_DISK_MS: u64 = 60;

pub(crate) struct Faults {
    rng: Rng,
    oracle: Shared,
    machines: Vec<Machine>,
    fleet: SharedFleet,
    nodes: Vec<String>,
    /// Every host but the coordinators.
    others: Vec<String>,
    next_at: u64,
    /// When which host starts again.
    restarts: Vec<(u64, String)>,
    mends_at: Option<u64>,
    lying: bool,
    pub(crate) crashes: u64,
    pub(crate) cuts: u64,
}

impl Faults {
    pub(crate) fn new(
        seed: u64,
        machines: Vec<Machine>,
        fleet: SharedFleet,
        clients: &[String],
        lying: bool,
        oracle: Shared,
    ) -> Self {
        let nodes: Vec<String> = fleet.borrow().machines.keys().cloned().collect();
        let faults = Self {
            rng: Rng::new(seed, 1),
            oracle,
            machines,
            fleet,
            others: nodes.iter().chain(clients).cloned().collect(),
            nodes,
            next_at: 0,
            restarts: Vec::new(),
            mends_at: None,
            lying,
            crashes: 0,
            cuts: 0,
        };
        faults.equip_disks();
        faults
    }

    fn equip_disks(&self) {
        for machine in &self.machines {
            machine.log.set_faults(SimFaults { lying_sync: self.lying, ..SimFaults::default() });
        }
    }

    fn note(&self, at: u64, line: &str) {
        self.oracle.borrow_mut().note_at(at, line);
    }

    pub(crate) fn step(&mut self, sim: &mut Sim<'_>) {
        let now = millis(sim.elapsed());
        self.restart(sim, now, |at| at <= now);
        if self.mends_at.is_some_and(|at| at <= now) {
            self.mend(sim, now);
        }
        if self.next_at == 0 {
            self.next_at = now;
        }
        if now < self.next_at {
            return;
        }
        self.next_at = now + self.rng.within(300, 2_500);
        match self.rng.below(13) {
            10.. => self.crash_node(sim, now),
            0..3 => {
                let one = self.rng.below(self.machines.len() as u64) as usize;
                self.crash(sim, now, one);
            }
            3 => (0..self.machines.len()).for_each(|one| self.crash(sim, now, one)),
            4..9 => self.cut(sim, now),
            9 => {
                self.note(now, "disks are slow");
                set_slowest(SLOW_DISK_MS);
                self.mend_after(now);
            }
        }
    }

    fn crash(&mut self, sim: &mut Sim<'_>, now: u64, one: usize) {
        let machine = self.machines[one].clone();
        if self.is_down(&machine.name) {
            return;
        }
        self.note(now, &format!("{} crashes", machine.name));
        sim.crash(machine.name.as_str());
        machine.applied.set(0);
        if self.lying || self.rng.chance(30) {
            machine.log.lose_unsynced();
        } else {
            machine.log.crash(self.rng.next());
        }
        self.restart_later(now, machine.name);
    }

    fn is_down(&self, name: &str) -> bool {
        self.restarts.iter().any(|(_, down)| down == name)
    }

    fn restart_later(&mut self, now: u64, name: String) {
        self.crashes += 1;
        self.restarts.push((now + self.rng.within(200, 4_000), name));
    }

    /// The agent alone, whose workers go on, or its whole machine.
    fn crash_node(&mut self, sim: &mut Sim<'_>, now: u64) {
        let name = self.nodes[self.rng.below(self.nodes.len() as u64) as usize].clone();
        if self.is_down(&name) {
            return;
        }
        let is_power = self.rng.chance(40);
        self.note(now, &format!("{name} {}", if is_power { "loses power" } else { "loses its agent" }));
        sim.crash(name.as_str());
        if is_power && let Some(machine) = self.fleet.borrow_mut().machines.get_mut(&name) {
            machine.lose_power();
        }
        self.restart_later(now, name);
    }

    fn restart(&mut self, sim: &mut Sim<'_>, now: u64, is_due: impl Fn(u64) -> bool) {
        let (due, later) = std::mem::take(&mut self.restarts).into_iter().partition(|(at, _)| is_due(*at));
        self.restarts = later;
        let due: Vec<(u64, String)> = due;
        for (_, name) in due {
            self.note(now, &format!("{name} starts"));
            sim.bounce(name.as_str());
        }
    }

    fn mend_after(&mut self, now: u64) {
        let at = now + self.rng.within(300, 6_000);
        self.mends_at = Some(self.mends_at.map_or(at, |before| before.max(at)));
    }

    /// Links of one machine; which, how many and how is drawn.
    fn cut(&mut self, sim: &mut Sim<'_>, now: u64) {
        let name = |machine: &Machine| machine.name.clone();
        let one = self.rng.below(self.machines.len() as u64) as usize;
        let from = name(&self.machines[one]);
        let mut ends: Vec<String> = self.machines.iter().map(name).filter(|other| *other != from).collect();
        if self.rng.chance(30) {
            ends.extend(self.others.iter().cloned());
        }
        if self.rng.chance(50) {
            let kept = self.rng.below(ends.len() as u64) as usize;
            ends = vec![ends.swap_remove(kept)];
        }
        let how = self.rng.below(4);
        let word = ["cut both ways", "cut outwards", "cut inwards", "held"][how as usize];
        self.note(now, &format!("{from} and {ends:?}: {word}"));
        for end in &ends {
            let (from, end) = (from.as_str(), end.as_str());
            match how {
                0 => sim.partition(from, end),
                1 => sim.partition_oneway(from, end),
                2 => sim.partition_oneway(end, from),
                _ => sim.hold(from, end),
            }
        }
        self.cuts += 1;
        self.mend_after(now);
    }

    fn mend(&mut self, sim: &mut Sim<'_>, now: u64) {
        self.note(now, "links and disks are well");
        self.mends_at = None;
        set_slowest(DISK_MS);
        let mut all: Vec<&str> = self.machines.iter().map(|machine| machine.name.as_str()).collect();
        all.extend(self.others.iter().map(String::as_str));
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                sim.repair(*one, *other);
                sim.release(*one, *other);
            }
        }
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn end(&mut self, sim: &mut Sim<'_>) {
        let now = millis(sim.elapsed());
        self.mend(sim, now);
        self.restart(sim, now, |_| true);
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
