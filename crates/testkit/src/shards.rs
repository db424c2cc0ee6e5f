//! Shards on the nodes' disks: received from peers, read by peers, fetched, checked, removed.

use outlast_control::state::{CheckpointState, Observation};
use outlast_types::{Digest, NodeId};

use crate::assigned::{OrderKey, ShardKey, WorkerKey};
use crate::event::{AgentTimer, Bytes, Host, Msg, Update, What};
use crate::model_bug::ModelBug;
use crate::worker::StartPhase;
use crate::world::World;

const GET_US: u64 = 3_000_000;
const RESTORE_AGAIN_US: u64 = 500_000;

/// A shard on a disk.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) root: Digest,
    pub(crate) sealed: bool,
    pub(crate) corrupt: bool,
    /// A loss of power leaves it.
    pub(crate) synced: bool,
}

/// What a shard is fetched for.
#[derive(Clone, Debug)]
pub(crate) enum For {
    Restore { key: WorkerKey, until_us: u64 },
    Order(OrderKey),
}

/// Holder after holder is asked.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    shard: ShardKey,
    root: Digest,
    holders: Vec<NodeId>,
    asked: usize,
    tries: u32,
    /// Somebody was merely away.
    transient: bool,
    purpose: For,
}

impl World {
    pub(crate) fn handle_put(
        &mut self,
        a: usize,
        from: usize,
        (save, tries): (u64, u32),
        shard: ShardKey,
        root: Digest,
    ) {
        let early = self.model_bug == Some(ModelBug::ConfirmCopyEarly);
        let agent = &mut self.agents[a];
        let is_over = agent.newest.supersedes(&shard.attempt)
            || agent.fates.get(&(shard.job(), shard.seq)).is_some_and(|sealed| !sealed);
        let takes = !is_over && !agent.disk_full;
        let holder = takes.then(|| {
            let stored = Stored { root, sealed: false, corrupt: false, synced: !early };
            agent.folder.shards.entry(shard).or_insert(stored);
            agent.holder()
        });
        self.send(Host::Agent(a), Host::Agent(from), Msg::PutAnswer { save, tries, holder });
    }

    pub(crate) fn handle_get(
        &mut self,
        a: usize,
        from: usize,
        (fetch, tries): (u64, u32),
        shard: ShardKey,
        root: Digest,
    ) {
        let bytes = match self.agents[a].folder.shards.get(&shard) {
            Some(stored) if stored.root != root => Bytes::Missing,
            Some(stored) if stored.corrupt => Bytes::Corrupt,
            Some(_) => Bytes::Good,
            None => Bytes::Missing,
        };
        if bytes == Bytes::Corrupt {
            self.set_aside(a, shard, root);
        }
        self.send(Host::Agent(a), Host::Agent(from), Msg::GetAnswer { fetch, tries, bytes });
    }

    pub(crate) fn begin_fetch(
        &mut self,
        a: usize,
        shard: ShardKey,
        root: Digest,
        holders: Vec<NodeId>,
        purpose: For,
    ) {
        let own = &self.agents[a].node;
        let holders: Vec<NodeId> = holders.into_iter().filter(|holder| holder != own).collect();
        // Only nodes that are there are named: those that have it are merely away.
        let transient = holders.is_empty();
        let id = self.id();
        let fetch = Fetch { shard, root, holders, asked: 0, tries: 0, transient, purpose };
        self.agents[a].fetches.insert(id, fetch);
        self.fetch_next(a, id);
    }

    fn fetch_next(&mut self, a: usize, id: u64) {
        let Some(fetch) = self.agents[a].fetches.get_mut(&id) else { return };
        let Some(holder) = fetch.holders.get(fetch.asked).cloned() else { return self.fetch_failed(a, id) };
        fetch.asked += 1;
        fetch.tries += 1;
        let (tries, shard, root) = (fetch.tries, fetch.shard, fetch.root);
        let to = self.agent_named(&holder);
        self.send(Host::Agent(a), Host::Agent(to), Msg::Get { fetch: id, tries, shard, root });
        self.after(Host::Agent(a), GET_US, What::Agent(AgentTimer::FetchOver(id, tries)));
    }

    pub(crate) fn fetch_over(&mut self, a: usize, id: u64, tries: u32) {
        if let Some(fetch) = self.agents[a].fetches.get_mut(&id).filter(|fetch| fetch.tries == tries) {
            fetch.transient = true;
            self.fetch_next(a, id);
        }
    }

    pub(crate) fn fetch_answered(&mut self, a: usize, id: u64, tries: u32, bytes: Bytes) {
        let agent = &mut self.agents[a];
        let Some(fetch) = agent.fetches.get(&id).filter(|fetch| fetch.tries == tries) else { return };
        if bytes != Bytes::Good {
            return self.fetch_next(a, id);
        }
        let (shard, root, purpose) = (fetch.shard, fetch.root, fetch.purpose.clone());
        agent.fetches.remove(&id);
        if agent.disk_full {
            return self.fetch_ended(a, purpose, Err((false, "the disk is full".to_owned())));
        }
        agent.folder.shards.insert(shard, Stored { root, sealed: true, corrupt: false, synced: true });
        self.fetch_ended(a, purpose, Ok(()));
    }

    fn fetch_failed(&mut self, a: usize, id: u64) {
        let Some(fetch) = self.agents[a].fetches.remove(&id) else { return };
        let corrupt = !fetch.transient;
        self.fetch_ended(a, fetch.purpose, Err((corrupt, "no holder has it".to_owned())));
    }

    fn fetch_ended(&mut self, a: usize, purpose: For, outcome: Result<(), (bool, String)>) {
        match purpose {
            For::Restore { key, until_us } => match outcome {
                // The own disk has it now.
                Ok(()) => self.go_on_starting(a, key, StartPhase::Restore { until_us }, 0),
                Err((corrupt, reason)) => self.restore_missed(a, key, until_us, corrupt, reason),
            },
            For::Order(order) => self.copy_ended(a, order, outcome.map_err(|(_, reason)| reason)),
        }
    }

    /// The rank's part of the checkpoint that its attempt starts from.
    pub(crate) fn restore_step(&mut self, a: usize, key: WorkerKey, until_us: u64) {
        let trusts = self.model_bug == Some(ModelBug::TrustBytes);
        let agent = &self.agents[a];
        let from = agent.tracked.get(&key).and_then(|tracked| tracked.assigned.as_ref()?.restore.clone());
        let Some(from) = from else { return };
        let own = agent.folder.shards.get(&from.shard).filter(|stored| stored.root == from.root).cloned();
        match own {
            Some(stored) if !stored.corrupt || trusts => {
                self.check_restored(key, from.root, stored.corrupt);
                self.cover.restores += 1;
                let observation =
                    Observation::Restored { attempt: key.attempt, rank: key.rank, seq: from.shard.seq };
                self.agents[a].observe(observation);
                self.go_on_starting(a, key, StartPhase::Rendezvous, 0);
            }
            own => {
                if own.is_some() {
                    self.set_aside(a, from.shard, from.root);
                }
                let holders = from.holders.clone();
                self.begin_fetch(a, from.shard, from.root, holders, For::Restore { key, until_us });
            }
        }
    }

    fn restore_missed(&mut self, a: usize, key: WorkerKey, until_us: u64, corrupt: bool, reason: String) {
        let Some(tracked) = self.agents[a].tracked.get(&key).filter(|tracked| tracked.is_alive()) else {
            return;
        };
        if tracked.start != Some(StartPhase::Restore { until_us }) {
            return;
        }
        if !corrupt && self.now < until_us {
            return self.go_on_starting(a, key, StartPhase::Restore { until_us }, RESTORE_AGAIN_US);
        }
        let Some(from) = tracked.assigned.as_ref().and_then(|assigned| assigned.restore.as_ref()) else {
            return;
        };
        let seq = from.shard.seq;
        self.cover.restores_failed += 1;
        let failed =
            Observation::RestoreFailed { attempt: key.attempt, rank: key.rank, seq, corrupt, reason };
        self.agents[a].observe(failed);
        self.ended(a, key, None);
    }

    /// The own copy is bad: it goes aside first, and then the log hears of it.
    pub(crate) fn set_aside(&mut self, a: usize, shard: ShardKey, root: Digest) {
        let agent = &mut self.agents[a];
        let sealed =
            agent.folder.shards.get(&shard).is_some_and(|stored| stored.root == root && stored.corrupt);
        if !sealed {
            return;
        }
        agent.folder.shards.remove(&shard);
        agent.set_aside.insert(shard);
        self.say_lost(a, shard, root);
    }

    fn say_lost(&mut self, a: usize, shard: ShardKey, root: Digest) {
        self.cover.shards_lost += 1;
        let ShardKey { attempt, seq, rank } = shard;
        let reason = "damaged or gone".to_owned();
        self.agents[a].observe(Observation::ShardLost { attempt, seq, rank, root, reason });
    }

    /// Looks at everything on the disk. Sooner than the agent's own scrubber, which takes a day.
    pub(crate) fn scrub(&mut self, a: usize) {
        let shards = self.agents[a].folder.shards.iter();
        let bad: Vec<(ShardKey, Digest)> =
            shards.filter(|(_, stored)| stored.corrupt).map(|(key, stored)| (*key, stored.root)).collect();
        bad.into_iter().for_each(|(shard, root)| self.set_aside(a, shard, root));
    }

    /// What the log said of a checkpoint, on the disk.
    pub(crate) fn follow_fate(&mut self, a: usize, update: &Update) {
        let of = |shard: &ShardKey| (shard.job(), shard.seq) == (update.job, update.seq);
        let shards = &mut self.agents[a].folder.shards;
        match update.state {
            Some(CheckpointState::Sealed) => {
                for (_, stored) in shards.iter_mut().filter(|(shard, _)| of(shard)) {
                    stored.sealed |= update.roots.contains(&stored.root);
                }
                let here = update.here.iter();
                let gone: Vec<_> = here
                    .filter(|(key, root)| shards.get(key).is_none_or(|stored| stored.root != *root))
                    .copied()
                    .collect();
                gone.into_iter().for_each(|(shard, root)| self.say_lost(a, shard, root));
            }
            Some(state @ (CheckpointState::Retired | CheckpointState::Aborted)) => {
                let goes = |stored: &Stored| state == CheckpointState::Retired || !stored.sealed;
                let mut gone = Vec::new();
                shards.retain(|shard, stored| {
                    let is_gone = of(shard) && goes(stored);
                    if is_gone {
                        gone.push((*shard, stored.root));
                    }
                    !is_gone
                });
                gone.iter().for_each(|(shard, root)| self.check_deleted(shard, *root));
            }
            Some(CheckpointState::Open | CheckpointState::Quarantined) | None => {}
        }
    }
}
