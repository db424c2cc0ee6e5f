//! Who holds the shards of sealed checkpoints, and what nodes are told to do with them: copy, prove, store.
//!
//! A holder is believed while its node has the same disk; one that finds its copy damaged says so and is one no more.
//! What a checkpoint's copies amount to is raised here, never lowered: what is true now is a question (`durability_now`).

use outlast_types::{AttemptId, CheckpointSeq, Digest, Durability, JobId, NodeId};

use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, invalid, not_found};
use crate::state::{
    Checkpoint, ClusterState, Event, Holder, Incarnation, NodeCondition, Refusal, Response, ShardOrder,
    ShardRecord, ShardTask, Tier,
};

/// Holders of one shard that the log keeps.
pub(in crate::state) const HOLDERS_MAX: usize = 16;

/// One rank's part of a checkpoint, as an observation names it.
#[derive(Clone, Copy)]
pub(super) struct ShardRef<'a> {
    pub(super) attempt: &'a AttemptId,
    pub(super) seq: CheckpointSeq,
    pub(super) rank: u32,
}

impl ShardRef<'_> {
    fn job(&self) -> JobId {
        self.attempt.group.job
    }
}

impl ClusterState {
    pub(super) fn order_shards(
        &mut self,
        cx: &mut Context<'_>,
        (job, seq): (JobId, CheckpointSeq),
        task: ShardTask,
        orders: &[(u32, NodeId)],
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let checkpoint = self.sealed(job, seq)?;
        for (rank, node) in orders {
            self.check_order_for(checkpoint, task, *rank, node)?;
        }
        for (rank, node) in orders {
            self.drop_orders(job, seq, |other, order| (other, order.task) == (*rank, task));
            let Some(shard) = self.shard_mut(job, seq, *rank) else { continue };
            shard.orders.push(ShardOrder { task, node: node.clone() });
            shard.orders.sort();
            self.index.order(node, (job, seq, *rank, task));
            // A copy is news, because something was lost; the others belong to every checkpoint's life.
            if task == ShardTask::Copy {
                cx.tell(Event::ShardCopyOrdered { job, seq, rank: *rank, node: node.clone() });
            }
        }
        Ok(Response::Done)
    }

    fn check_order_for(
        &self,
        checkpoint: &Checkpoint,
        task: ShardTask,
        rank: u32,
        node: &NodeId,
    ) -> Result<(), Refusal> {
        let shard = checkpoint
            .shard(rank)
            .ok_or_else(|| invalid(format!("{} has no rank {rank}", checkpoint.seq)))?;
        let record = self.nodes.get(node).ok_or_else(|| not_found(format!("node {node}")))?;
        if record.condition == NodeCondition::Lost {
            return Err(conflict(format!("node {node} is lost")));
        }
        let holds = self.live_holders(&shard.holders).any(|holder| holder.node == *node);
        match task {
            ShardTask::Copy if holds => Err(conflict(format!("node {node} holds rank {rank} already"))),
            ShardTask::Prove | ShardTask::Store if !holds => {
                Err(conflict(format!("node {node} does not hold rank {rank}")))
            }
            ShardTask::Copy | ShardTask::Prove | ShardTask::Store => Ok(()),
        }
    }

    pub(super) fn prove_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        (job, seq): (JobId, CheckpointSeq),
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        self.sealed(job, seq)?;
        self.mark_proven(cx, job, seq);
        Ok(Response::Done)
    }

    pub(super) fn mark_proven(&mut self, cx: &mut Context<'_>, job: JobId, seq: CheckpointSeq) {
        self.drop_orders(job, seq, |_, order| order.task == ShardTask::Prove);
        let Ok(checkpoint) = self.checkpoint_mut(job, seq) else { return };
        if checkpoint.is_sealed() && !checkpoint.proven {
            checkpoint.proven = true;
            cx.tell(Event::CheckpointProven { job, seq });
        }
    }

    pub(super) fn store_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        (job, seq): (JobId, CheckpointSeq),
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        self.sealed(job, seq)?;
        self.drop_orders(job, seq, |_, order| order.task == ShardTask::Store);
        let at = cx.at;
        let checkpoint = self.checkpoint_mut(job, seq)?;
        if checkpoint.stored_at.is_none() {
            checkpoint.stored_at = Some(at);
            checkpoint.durability = Some(Durability::Stored);
            checkpoint.degraded = false;
            cx.tell(Event::CheckpointRaised { job, seq, durability: Durability::Stored });
        }
        Ok(Response::Done)
    }

    /// A node has the bytes. Anything else than the sealed bytes of a sealed checkpoint is no holder of anything.
    pub(super) fn shard_held(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        of: ShardRef<'_>,
        root: &Digest,
    ) {
        let (job, seq, rank) = (of.job(), of.seq, of.rank);
        self.drop_orders(job, seq, |other, order| {
            (other, order.task) == (rank, ShardTask::Copy) && order.node == *node
        });
        let Some(record) = self.nodes.get(node) else { return };
        let holder = Holder {
            node: node.clone(),
            boot: record.boot.clone(),
            disk: record.disk.clone(),
            tier: Tier::Disk,
        };
        let dead: Vec<Holder> = match self.sealed_shard(of, root) {
            Some(shard) => {
                shard.holders.iter().filter(|holder| !self.is_live_holder(holder)).cloned().collect()
            }
            None => return,
        };
        let Some(shard) = self.shard_mut(job, seq, rank) else { return };
        if shard.holders.iter().any(|known| known.node == *node && known.disk == holder.disk) {
            return;
        }
        shard.holders.retain(|known| known.node != *node);
        if shard.holders.len() >= HOLDERS_MAX {
            // Only to make room: a node that comes back may still have good bytes.
            shard.holders.retain(|known| !dead.contains(known));
        }
        if shard.holders.len() >= HOLDERS_MAX {
            return;
        }
        shard.holders.push(holder);
        shard.holders.sort();
        (shard.failed_copies, shard.copies_failed) = (Vec::new(), 0);
        cx.tell(Event::ShardCopied { job, seq, rank, node: node.clone() });
        self.raise(cx, job, seq);
    }

    /// A node says that its copy is no good. Only about itself, and only while nothing newer is known of it.
    pub(super) fn shard_lost(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        of: ShardRef<'_>,
        root: &Digest,
        reason: &str,
    ) {
        let (job, seq, rank) = (of.job(), of.seq, of.rank);
        if !self.sealed_shard(of, root).is_some_and(|shard| shard.holders.iter().any(|h| h.node == *node)) {
            return;
        }
        self.drop_orders(job, seq, |other, order| other == rank && order.node == *node);
        if let Some(shard) = self.shard_mut(job, seq, rank) {
            shard.holders.retain(|holder| holder.node != *node);
        }
        let reason = bounded(reason, REASON_BYTES_MAX);
        cx.tell(Event::ShardDamaged { job, seq, rank, node: node.clone(), reason });
    }

    pub(super) fn copy_failed(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        of: ShardRef<'_>,
        reason: &str,
    ) {
        let (job, seq, rank) = (of.job(), of.seq, of.rank);
        let dropped = self.drop_orders(job, seq, |other, order| {
            (other, order.task) == (rank, ShardTask::Copy) && order.node == *node
        });
        if dropped {
            let at = cx.at;
            if let Some(shard) = self.shard_mut(job, seq, rank) {
                shard.failed_copies.retain(|(failed, _)| failed != node);
                let surplus = (shard.failed_copies.len() + 1).saturating_sub(ShardRecord::FAILED_COPIES_MAX);
                shard.failed_copies.drain(..surplus);
                shard.failed_copies.push((node.clone(), at));
                shard.copies_failed = shard.copies_failed.saturating_add(1);
            }
            let reason = bounded(reason, REASON_BYTES_MAX);
            cx.tell(Event::ShardCopyFailed { job, seq, rank, node: node.clone(), reason });
        }
    }

    /// More copies than the seal knew of: `local` becomes `replicated`, and what was sealed below the wanted level is
    /// degraded no more.
    fn raise(&mut self, cx: &mut Context<'_>, job: JobId, seq: CheckpointSeq) {
        let Ok(checkpoint) = self.sealed(job, seq) else { return };
        let spread = checkpoint.shards.iter().all(|shard| self.live_domains_of(&shard.holders) >= 2);
        let is_higher = checkpoint.durability < Some(Durability::Replicated) || checkpoint.degraded;
        if !spread || !is_higher {
            return;
        }
        let Ok(checkpoint) = self.checkpoint_mut(job, seq) else { return };
        let durability = checkpoint.durability.max(Some(Durability::Replicated));
        (checkpoint.durability, checkpoint.degraded) = (durability, false);
        cx.tell(Event::CheckpointRaised { job, seq, durability: Durability::Replicated });
    }

    /// What a lost node was told to do is for others to do.
    pub(super) fn drop_orders_of(&mut self, node: &NodeId) {
        for (job, seq, rank, task) in self.index.orders.remove(node).unwrap_or_default() {
            if let Some(shard) = self.shard_mut(job, seq, rank) {
                shard.orders.retain(|order| order.task != task || order.node != *node);
            }
        }
    }

    /// Removes the orders that match (rank, order); whether there were any.
    pub(super) fn drop_orders(
        &mut self,
        job: JobId,
        seq: CheckpointSeq,
        matches: impl Fn(u32, &ShardOrder) -> bool,
    ) -> bool {
        let Some(checkpoint) = self.jobs.get_mut(&job).and_then(|job| job.checkpoints.get_mut(&seq)) else {
            return false;
        };
        let mut any = false;
        for shard in &mut checkpoint.shards {
            let rank = shard.rank;
            for order in shard.orders.extract_if(.., |order| matches(rank, order)) {
                self.index.unorder(&order.node, &(job, seq, rank, order.task));
                any = true;
            }
        }
        any
    }

    fn sealed(&self, job: JobId, seq: CheckpointSeq) -> Result<&Checkpoint, Refusal> {
        let record = self.jobs.get(&job).ok_or_else(|| not_found(format!("job {job}")))?;
        let checkpoint = record.checkpoints.get(&seq);
        let checkpoint = checkpoint.ok_or_else(|| not_found(format!("checkpoint {seq} of job {job}")))?;
        if checkpoint.is_sealed() { Ok(checkpoint) } else { Err(conflict(format!("{seq} is not sealed"))) }
    }

    fn sealed_shard(&self, of: ShardRef<'_>, root: &Digest) -> Option<&ShardRecord> {
        let checkpoint = self.sealed(of.job(), of.seq).ok()?;
        checkpoint.shard(of.rank).filter(|shard| checkpoint.attempt == *of.attempt && shard.root == *root)
    }

    fn shard_mut(&mut self, job: JobId, seq: CheckpointSeq, rank: u32) -> Option<&mut ShardRecord> {
        self.jobs.get_mut(&job)?.checkpoints.get_mut(&seq)?.shards.get_mut(rank as usize)
    }
}
