//! What goes wrong, and how it ends.

use crate::event::{Host, What, WorldTimer};
use crate::world::World;

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    CrashCoord(usize),
    PauseCoord(usize, u64),
    CrashAgent(usize),
    PauseAgent(usize, u64),
    /// The machine loses power; with another disk where it says so.
    PowerOff(usize, bool),
    Cut(Vec<(Host, Host)>, u64),
    DiskFull(usize),
    DiskRoom(usize),
    Rot(usize),
    SlowLog(usize),
    WallJump(usize, i64),
    Freeze(usize, u64),
}

const DOWN_US: (u64, u64) = (100_000, 12_000_000);

impl World {
    pub(crate) fn next_fault(&mut self) {
        if self.healing {
            return;
        }
        if let Some(fault) = self.draw_fault() {
            self.inject(fault);
        }
        let every = self.scenario.fault_every_us;
        let pause = self.rng.within(every / 10, every * 19 / 10);
        self.after_any(Host::World, pause, What::World(WorldTimer::NextFault));
    }

    fn draw_fault(&mut self) -> Option<Fault> {
        let kinds = self.scenario.kinds.clone();
        let any_coord = self.rng.index(self.coords.len());
        let leader = (0..self.coords.len()).find(|c| self.coords[*c].office.is_some());
        // The leader is the most interesting one.
        let c = leader.filter(|_| self.rng.per_mille(500)).unwrap_or(any_coord);
        let a = self.rng.index(self.agents.len());
        Some(match self.rng.below(11) {
            0 if kinds.crash_coord => Fault::CrashCoord(c),
            1 if kinds.pause_coord => Fault::PauseCoord(c, self.rng.within(100_000, 9_000_000)),
            2 if kinds.crash_agent => Fault::CrashAgent(a),
            3 if kinds.pause_agent => Fault::PauseAgent(a, self.rng.within(100_000, 12_000_000)),
            4 if kinds.power_off => Fault::PowerOff(a, self.rng.per_mille(250)),
            5 | 6 if kinds.cut => self.draw_cut(c, a),
            7 if kinds.disks => Fault::Rot(a),
            8 if kinds.disks => Fault::DiskFull(a),
            9 if kinds.wall => Fault::WallJump(c, self.rng.within(0, 60_000) as i64 - 30_000),
            10 if kinds.freeze => Fault::Freeze(a, self.rng.within(500_000, 12_000_000)),
            10 if kinds.disks => Fault::SlowLog(c),
            _ => return None,
        })
    }

    fn draw_cut(&mut self, c: usize, a: usize) -> Fault {
        let coords = (0..self.coords.len()).map(Host::Coord);
        let agents = (0..self.agents.len()).map(Host::Agent);
        let (one, others): (Host, Vec<Host>) = match self.rng.below(4) {
            0 => (Host::Coord(c), coords.filter(|other| *other != Host::Coord(c)).collect()),
            1 => (Host::Coord(c), coords.chain(agents).filter(|other| *other != Host::Coord(c)).collect()),
            2 => (Host::Agent(a), coords.collect()),
            _ => (Host::Agent(a), coords.chain(agents).filter(|other| *other != Host::Agent(a)).collect()),
        };
        let direction = self.rng.below(4);
        let mut links = Vec::new();
        for other in others {
            if direction != 0 {
                links.push((one, other));
            }
            if direction != 1 {
                links.push((other, one));
            }
        }
        Fault::Cut(links, self.rng.within(500_000, 15_000_000))
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.trace(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::CrashCoord(c) => {
                self.cover.coord_crashes += u64::from(self.coords[c].up);
                self.crash_coord(c);
                self.restart_later(Host::Coord(c));
            }
            Fault::PauseCoord(c, us) => {
                self.cover.coord_pauses += 1;
                self.coords[c].paused_until = self.now + us;
            }
            Fault::CrashAgent(a) => {
                self.cover.agent_crashes += u64::from(self.agents[a].up);
                self.crash_agent(a);
                self.restart_later(Host::Agent(a));
            }
            Fault::PauseAgent(a, us) => {
                self.cover.agent_pauses += 1;
                self.agents[a].paused_until = self.now + us;
            }
            Fault::PowerOff(a, new_disk) => self.power_off(a, new_disk),
            Fault::Cut(links, us) => {
                self.cover.cuts += 1;
                let both = links.iter().any(|(from, to)| links.contains(&(*to, *from)));
                self.cover.one_way_cuts += u64::from(!both);
                links.into_iter().for_each(|(from, to)| self.net.cut(from, to));
                self.after_any(Host::World, us, What::World(WorldTimer::Mend));
            }
            Fault::DiskFull(a) => {
                self.cover.full_disks += 1;
                self.agents[a].disk_full = true;
                let full_for = self.rng.within(1_000_000, 20_000_000);
                let room = What::World(WorldTimer::Fault(Box::new(Fault::DiskRoom(a))));
                self.after_any(Host::World, full_for, room);
            }
            Fault::DiskRoom(a) => self.agents[a].disk_full = false,
            Fault::Rot(a) => self.rot(a),
            Fault::SlowLog(c) => self.coords[c].sync_max_us = self.rng.within(4_000, 300_000),
            Fault::WallJump(c, ms) => {
                self.cover.wall_jumps += 1;
                self.coords[c].clock.set_wall(ms);
            }
            Fault::Freeze(a, us) => {
                self.cover.freezes += 1;
                self.agents[a].paused_until = self.now + us;
                self.agents[a].frozen_until = self.now + us;
                self.agents[a].clock.lose(us);
            }
        }
    }

    fn restart_later(&mut self, host: Host) {
        let down = self.rng.within(DOWN_US.0, DOWN_US.1);
        self.after_any(Host::World, down, What::World(WorldTimer::Restart(host)));
    }

    pub(crate) fn restart(&mut self, host: Host) {
        match host {
            Host::Coord(c) if !self.coords[c].up => self.start_coord(c),
            Host::Agent(a) => {
                self.agents[a].powered = true;
                self.start_agent(a);
            }
            Host::Coord(_) | Host::World => {}
        }
    }

    fn power_off(&mut self, a: usize, new_disk: bool) {
        if !self.agents[a].powered {
            return;
        }
        self.cover.power_losses += 1;
        let procs: Vec<u64> = self.agents[a].procs.keys().copied().collect();
        self.crash_agent(a);
        for id in procs {
            self.vanish(a, id);
        }
        let agent = &mut self.agents[a];
        agent.powered = false;
        agent.boot += 1;
        agent.paused_until = 0;
        agent.frozen_until = 0;
        agent.folder.shards.retain(|_, stored| stored.synced);
        if new_disk {
            self.cover.new_disks += 1;
            agent.disk += 1;
            agent.folder = crate::agent::Folder::default();
        }
        self.restart_later(Host::Agent(a));
    }

    fn rot(&mut self, a: usize) {
        let count = self.agents[a].folder.shards.len();
        if count == 0 {
            return;
        }
        // One file, or what a whole stretch of the disk held.
        let (which, all) = (self.rng.index(count), self.rng.per_mille(300));
        for (_, stored) in
            self.agents[a].folder.shards.values_mut().enumerate().filter(|(i, _)| all || *i == which)
        {
            self.cover.rotten_shards += 1;
            stored.corrupt = true;
        }
    }
}
