//! A rank's part of a checkpoint on its way: opened in the log, written, copied to a peer, and said in receipts until the log
//! has decided (`agent/src/worker/save.rs`). It goes on when the worker dies in the middle.

use outlast_control::plan::SaveCost;
use outlast_control::state::Holder;

use crate::assigned::{ShardKey, WorkerKey};
use crate::bytes::shard_root;
use crate::event::{AgentTimer, Host, Msg, Opened, Receipt, What};
use crate::shards::Stored;
use crate::world::World;

const OPEN_US: u64 = 10_000_000;
const AGAIN_US: u64 = 500_000;
const FENCED_US: u64 = 20_000_000;
const WRITE_US: (u64, u64) = (20_000, 400_000);
const PUT_US: u64 = 3_000_000;
const ROUND_US: u64 = 2_000_000;
const ROUNDS_MAX: u32 = 60;

#[derive(Clone, Debug)]
enum Phase {
    Opening,
    Writing(ShardKey),
    Copying { shard: ShardKey, holders: Vec<Holder>, next_peer: usize, rounds: u32 },
}

#[derive(Clone, Debug)]
pub(crate) struct Save {
    key: WorkerKey,
    proc: u64,
    step: u64,
    began_us: u64,
    tries: u32,
    phase: Phase,
}

impl World {
    pub(crate) fn begin_save(&mut self, a: usize, proc: u64, step: u64) {
        let Some(key) = self.agents[a].procs.get(&proc).map(|proc| proc.key) else { return };
        if let Some(proc) = self.agents[a].procs.get_mut(&proc) {
            proc.saving = true;
        }
        if !self.agents[a].up {
            // Nobody answers: training goes on without this one.
            return self.train_on(a, proc, step);
        }
        let id = self.id();
        let save = Save { key, proc, step, began_us: self.now, tries: 0, phase: Phase::Opening };
        self.agents[a].saves.insert(id, save);
        self.save_step(a, id);
    }

    pub(crate) fn save_step(&mut self, a: usize, id: u64) {
        let Some(save) = self.agents[a].saves.get_mut(&id) else { return };
        match save.phase.clone() {
            Phase::Opening => {
                save.tries += 1;
                let (tries, attempt, step) = (save.tries, save.key.attempt, save.step);
                let agent = &self.agents[a];
                let (node, registration) = (agent.node.clone(), agent.registration);
                let own = agent.link.as_ref().map(|link| link.coord);
                let c = own.unwrap_or_else(|| self.rng.index(self.coords.len()));
                let ask = Msg::Open { save: id, tries, node, registration, attempt, step };
                self.send(Host::Agent(a), Host::Coord(c), ask);
                self.after(Host::Agent(a), OPEN_US, What::Agent(AgentTimer::SaveOver(id, tries)));
            }
            Phase::Writing(shard) => self.written(a, id, shard),
            Phase::Copying { .. } => {}
        }
    }

    pub(crate) fn save_over(&mut self, a: usize, id: u64, tries: u32) {
        let waits = |save: &Save| save.tries == tries && matches!(save.phase, Phase::Opening);
        if self.agents[a].saves.get(&id).is_some_and(waits) {
            self.give_save_up(a, id);
        }
    }

    fn give_save_up(&mut self, a: usize, id: u64) {
        if let Some(save) = self.agents[a].saves.remove(&id) {
            self.train_on(a, save.proc, save.step);
        }
    }

    pub(crate) fn save_opened(&mut self, a: usize, id: u64, tries: u32, opened: Opened) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(save) = agent.saves.get_mut(&id) else { return };
        if save.tries != tries || !matches!(save.phase, Phase::Opening) {
            return;
        }
        match opened {
            Opened::Yes(seq) => {
                let shard = ShardKey { attempt: save.key.attempt, seq, rank: save.key.rank };
                save.phase = Phase::Writing(shard);
                let receipt = Receipt { shard, root: None, holders: Vec::new(), failed: None };
                if !agent.fates.contains_key(&(shard.job(), shard.seq)) {
                    agent.receipts.insert(shard, receipt);
                    agent.has_news = true;
                }
                let took = self.rng.within(WRITE_US.0, WRITE_US.1);
                self.after(Host::Agent(a), took, What::Agent(AgentTimer::Save(id)));
            }
            Opened::Fenced
                if now - save.began_us < FENCED_US && !agent.newest.supersedes(&save.key.attempt) =>
            {
                self.after(Host::Agent(a), AGAIN_US, What::Agent(AgentTimer::Save(id)));
            }
            Opened::Skipped => {
                self.cover.saves_skipped += 1;
                self.give_save_up(a, id);
            }
            Opened::Fenced => {
                self.cover.saves_fenced += 1;
                self.give_save_up(a, id);
            }
            Opened::Refused | Opened::Unavailable => self.give_save_up(a, id),
        }
    }

    /// Every byte is on the disk, or there was no room.
    fn written(&mut self, a: usize, id: u64, shard: ShardKey) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let holder = agent.holder();
        let Some(save) = agent.saves.get_mut(&id) else { return };
        let (key, proc, step) = (save.key, save.proc, save.step);
        let write_ms = (now - save.began_us) / 1_000;
        if agent.disk_full {
            self.cover.saves_failed += 1;
            if let Some(receipt) = self.agents[a].receipts.get_mut(&shard) {
                receipt.failed = Some("the disk is full".to_owned());
            }
            return self.give_save_up(a, id);
        }
        let root = shard_root(key.attempt, key.rank, step);
        save.phase = Phase::Copying { shard, holders: vec![holder.clone()], next_peer: 0, rounds: 0 };
        agent.folder.shards.insert(shard, Stored { root, sealed: false, corrupt: false, synced: true });
        if let Some(tracked) = agent.tracked.get_mut(&key) {
            tracked.save_cost = Some(SaveCost { stall_ms: write_ms, write_ms });
        }
        self.note_root(root, step);
        self.cover.saves += 1;
        self.receipt(a, shard, root, vec![holder]);
        self.train_on(a, proc, step);
        self.copy_step(a, id);
    }

    fn receipt(&mut self, a: usize, shard: ShardKey, root: outlast_types::Digest, holders: Vec<Holder>) {
        let agent = &mut self.agents[a];
        if agent.fates.contains_key(&(shard.job(), shard.seq)) {
            return;
        }
        agent.receipts.insert(shard, Receipt { shard, root: Some(root), holders, failed: None });
        agent.has_news = true;
    }

    /// Asks the next peer for a copy, until there are enough or the log has decided.
    pub(crate) fn copy_step(&mut self, a: usize, id: u64) {
        let agent = &mut self.agents[a];
        let Some(save) = agent.saves.get_mut(&id) else { return };
        let Phase::Copying { shard, holders, next_peer, rounds } = &mut save.phase else { return };
        let shard = *shard;
        let assigned = agent.tracked.get(&save.key).and_then(|tracked| tracked.assigned.as_ref());
        let enough = assigned.is_none_or(|assigned| holders.len() >= assigned.replicas);
        if enough || !agent.receipts.contains_key(&shard) {
            agent.saves.remove(&id);
            return;
        }
        let peers = assigned.map(|assigned| assigned.replica_peers.clone()).unwrap_or_default();
        let is_new = |peer: &outlast_types::NodeId| !holders.iter().any(|holder| holder.node == *peer);
        while *next_peer < peers.len() && !is_new(&peers[*next_peer]) {
            *next_peer += 1;
        }
        let Some(peer) = peers.get(*next_peer) else {
            *next_peer = 0;
            *rounds += 1;
            if *rounds >= ROUNDS_MAX {
                agent.saves.remove(&id);
                return;
            }
            return self.after(Host::Agent(a), ROUND_US, What::Agent(AgentTimer::Copy(id)));
        };
        *next_peer += 1;
        save.tries += 1;
        let tries = save.tries;
        let Some(root) = agent.folder.shards.get(&shard).map(|stored| stored.root) else {
            agent.saves.remove(&id);
            return;
        };
        let to = self.agent_named(peer);
        self.send(Host::Agent(a), Host::Agent(to), Msg::Put { save: id, tries, shard, root });
        self.after(Host::Agent(a), PUT_US, What::Agent(AgentTimer::CopyOver(id, tries)));
    }

    pub(crate) fn copy_over(&mut self, a: usize, id: u64, tries: u32) {
        if self.agents[a].saves.get(&id).is_some_and(|save| save.tries == tries) {
            self.copy_step(a, id);
        }
    }

    pub(crate) fn copy_answered(&mut self, a: usize, id: u64, tries: u32, holder: Option<Holder>) {
        let Some(save) = self.agents[a].saves.get_mut(&id) else { return };
        let Phase::Copying { shard, holders, .. } = &mut save.phase else { return };
        let (shard, said_late) = (*shard, save.tries != tries);
        if let Some(holder) = holder.filter(|holder| !holders.iter().any(|known| known.node == holder.node)) {
            holders.push(holder);
            let holders = holders.clone();
            let root = shard_root(save.key.attempt, save.key.rank, save.step);
            self.receipt(a, shard, root, holders);
        }
        if !said_late {
            self.copy_step(a, id);
        }
    }

    /// A restarted agent goes on with the copies of what its predecessor had written.
    pub(crate) fn announce_again(&mut self, a: usize, key: WorkerKey) {
        let agent = &self.agents[a];
        let own = |(shard, stored): &(&ShardKey, &Stored)| {
            (shard.attempt, shard.rank) == (key.attempt, key.rank) && !stored.sealed && !stored.corrupt
        };
        let found: Vec<(ShardKey, Stored)> =
            agent.folder.shards.iter().filter(own).map(|(shard, stored)| (*shard, stored.clone())).collect();
        let holder = agent.holder();
        for (shard, stored) in found {
            self.receipt(a, shard, stored.root, vec![holder.clone()]);
            let id = self.id();
            let phase = Phase::Copying { shard, holders: vec![holder.clone()], next_peer: 0, rounds: 0 };
            let step = self.step_of(stored.root);
            let save = Save { key, proc: 0, step, began_us: self.now, tries: 0, phase };
            self.agents[a].saves.insert(id, save);
            self.after(Host::Agent(a), 1_000, What::Agent(AgentTimer::Copy(id)));
        }
    }
}
