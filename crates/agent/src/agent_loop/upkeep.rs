//! The loop's side of upkeep: what is ordered is begun, and what came of it is observed.

use std::sync::Arc;

use outlast_blobs::ShardKey;
use outlast_control::state::{Observation, ShardTask};
use outlast_process::boot_now;
use outlast_types::Digest;

use super::AgentLoop;
use crate::context::blocking;
use crate::event::Event;
use crate::upkeep::{Ended, OrderKey, UpkeepEvent, damage};

impl AgentLoop {
    pub(super) fn reconcile_orders(&mut self) {
        let Some(desired) = self.desired.as_ref().filter(|_| self.stopping.is_none()) else { return };
        self.upkeep.reconcile(&self.context, &desired.orders, boot_now());
    }

    pub(super) fn handle_upkeep(&mut self, event: UpkeepEvent) {
        match event {
            UpkeepEvent::Ended(key, ended) => self.handle_order_ended(key, ended),
            UpkeepEvent::Damaged { shard, root, reason } => self.shard_damaged(shard, root, reason),
            UpkeepEvent::Looked { shard, root, set_aside } => {
                self.upkeep.end_look(shard, root);
                if let Some(reason) = set_aside {
                    self.shard_set_aside(&shard, root, reason);
                }
            }
        }
    }

    fn handle_order_ended(&mut self, key: OrderKey, ended: Ended) {
        if !self.upkeep.ended(&key, &ended, boot_now()) {
            return;
        }
        let OrderKey { task, shard, root } = key;
        let (attempt, seq, rank) = (shard.attempt, shard.seq, shard.rank);
        match (task, ended) {
            (ShardTask::Copy, Ended::Done) => {
                tracing::info!(node = %self.context.node, %attempt, rank, checkpoint = %seq, "copied a shard");
                self.context.metrics.shards_repaired.inc();
                self.observe(Observation::ShardHeld { attempt, seq, rank, root });
            }
            // Said with every heartbeat until the log has it.
            (ShardTask::Prove | ShardTask::Store, Ended::Done) => self.has_news = true,
            (ShardTask::Copy, Ended::Failed(reason) | Ended::Later(reason) | Ended::Damaged(reason)) => {
                tracing::warn!(node = %self.context.node, %attempt, rank, checkpoint = %seq, reason, "no copy made");
                self.observe(Observation::CopyFailed { attempt, seq, rank, reason });
            }
            (_, Ended::Damaged(reason)) => self.shard_damaged(shard, root, reason),
            (_, Ended::Failed(reason) | Ended::Later(reason)) => {
                tracing::warn!(node = %self.context.node, %attempt, rank, checkpoint = %seq, task = task.as_str(), reason, "tried again later");
            }
        }
    }

    /// Looked at again before anything is done: a good copy may have come since somebody read the bad one. The bytes go
    /// aside first, and then the log hears of it.
    fn shard_damaged(&mut self, shard: ShardKey, root: Digest, reason: String) {
        if !self.upkeep.begin_look(shard, root) {
            return;
        }
        let context = Arc::clone(&self.context);
        self.context.tasks.spawn(async move {
            let store = context.shards.clone();
            let is_bad = blocking(move || {
                let is_bad = store.read_back(&shard, root, |_| true).err().as_ref().and_then(damage).is_some();
                if is_bad && let Err(err) = store.set_aside(&shard, root) {
                    tracing::warn!(attempt = %shard.attempt, rank = shard.rank, checkpoint = %shard.seq, error = %err, "a damaged shard cannot be set aside");
                }
                is_bad
            });
            let set_aside = is_bad.await.then_some(reason);
            let event = UpkeepEvent::Looked { shard, root, set_aside };
            let _ = context.events.send(Event::Upkeep(event)).await;
        });
    }

    fn shard_set_aside(&mut self, shard: &ShardKey, root: Digest, reason: String) {
        let (attempt, seq, rank) = (shard.attempt, shard.seq, shard.rank);
        tracing::error!(node = %self.context.node, %attempt, rank, checkpoint = %seq, reason, "a shard on this disk is damaged or gone; another copy takes its place");
        self.context.metrics.verify_failures.inc();
        self.upkeep.forget(shard, root);
        self.observe(Observation::ShardLost { attempt, seq, rank, root, reason });
    }
}
