//! Orders about shards of sealed checkpoints, carried out by a node (`agent/src/upkeep`).

use outlast_control::state::{Observation, ShardTask};
use outlast_types::Digest;

use crate::assigned::{OrderKey, ShardKey};
use crate::event::{AgentTimer, Host, What};
use crate::shards::For;
use crate::world::World;

const COPIES_MAX: usize = 2;
/// An ended order that is still listed after this long is carried out again.
const AGAIN_US: u64 = 20_000_000;
const PROVE_US: (u64, u64) = (50_000, 500_000);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OrderState {
    Running,
    Done,
    Ended { at_us: u64 },
}

impl World {
    pub(crate) fn reconcile_orders(&mut self, a: usize) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(desired) = &agent.desired else { return };
        if desired.orders.is_empty() && agent.orders.is_empty() {
            return;
        }
        agent.orders.retain(|key, _| desired.orders.iter().any(|order| order.key == *key));
        let copies = agent
            .orders
            .iter()
            .filter(|(key, state)| key.task == ShardTask::Copy && **state == OrderState::Running)
            .count();
        let mut room = COPIES_MAX.saturating_sub(copies);
        let mut begun = Vec::new();
        for order in &desired.orders {
            let is_due = match agent.orders.get(&order.key) {
                None => true,
                Some(OrderState::Running | OrderState::Done) => false,
                Some(OrderState::Ended { at_us }) => now - at_us >= AGAIN_US,
            };
            if !is_due || (order.key.task == ShardTask::Copy && room == 0) {
                continue;
            }
            room -= usize::from(order.key.task == ShardTask::Copy);
            agent.orders.insert(order.key, OrderState::Running);
            begun.push(order.clone());
        }
        for order in begun {
            let (key, holders) = (order.key, order.holders);
            match key.task {
                ShardTask::Copy if self.has_good(a, &key.shard, key.root) => self.copy_ended(a, key, Ok(())),
                ShardTask::Copy => self.begin_fetch(a, key.shard, key.root, holders, For::Order(key)),
                ShardTask::Prove | ShardTask::Store => {
                    let took = self.rng.within(PROVE_US.0, PROVE_US.1);
                    self.after(Host::Agent(a), took, What::Agent(AgentTimer::OrderDone(key)));
                }
            }
        }
    }

    /// A proof has read its shard.
    pub(crate) fn order_step(&mut self, a: usize, key: OrderKey) {
        let good = self.has_good(a, &key.shard, key.root);
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(state) = agent.orders.get_mut(&key) else { return };
        if good {
            *state = OrderState::Done;
            agent.has_news = true;
            self.cover.proofs += 1;
            return;
        }
        *state = OrderState::Ended { at_us: now };
        self.shard_is_bad(a, key.shard, key.root);
    }

    fn shard_is_bad(&mut self, a: usize, shard: ShardKey, root: Digest) {
        if self.agents[a].folder.shards.get(&shard).is_some_and(|stored| stored.root == root) {
            return self.set_aside(a, shard, root);
        }
        let ShardKey { attempt, seq, rank } = shard;
        let reason = "not there".to_owned();
        self.agents[a].observe(Observation::ShardLost { attempt, seq, rank, root, reason });
    }

    pub(crate) fn copy_ended(&mut self, a: usize, key: OrderKey, outcome: Result<(), String>) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(state) = agent.orders.get_mut(&key) else { return };
        *state = OrderState::Ended { at_us: now };
        let ShardKey { attempt, seq, rank } = key.shard;
        match outcome {
            Ok(()) => {
                self.cover.copies += 1;
                agent.observe(Observation::ShardHeld { attempt, seq, rank, root: key.root });
            }
            Err(reason) => {
                self.cover.copies_failed += 1;
                agent.observe(Observation::CopyFailed { attempt, seq, rank, reason });
            }
        }
    }
}
