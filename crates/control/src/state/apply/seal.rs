//! `SealCheckpoint`: the commit point. Everything is checked here, in the log's order, so that no clock and no lease
//! takes part (invariants 24, 32, 33, 34).

use outlast_types::{AttemptId, CheckpointSeq, Digest, Durability, JobId};

use super::attempt_end::reset_budgets;
use super::checkpoint::newest_sealed_step;
use super::shards::HOLDERS_MAX;
use super::{Context, Handled, conflict, invalid, not_found};
use crate::planted::planted;
use crate::state::{
    Checkpoint, CheckpointState, ClusterState, Event, Holder, Job, Refusal, Response, SealedShard,
    ShardRecord,
};

pub(super) struct Seal<'a> {
    pub(super) job: JobId,
    pub(super) seq: CheckpointSeq,
    pub(super) attempt: AttemptId,
    pub(super) root: Digest,
    pub(super) shards: &'a [SealedShard],
    pub(super) durability: Durability,
    pub(super) degraded: bool,
}

/// A seal whose ranks have the very bytes of the checkpoint before, in at least this share of them, is suspect: the
/// program saves, but what it saves does not change.
const STALE_PERCENT: usize = 50;

impl ClusterState {
    pub(super) fn seal_checkpoint(&mut self, cx: &mut Context<'_>, seal: &Seal<'_>) -> Handled {
        let job = self.jobs.get(&seal.job).ok_or_else(|| not_found(format!("job {}", seal.job)))?;
        let checkpoint = job
            .checkpoints
            .get(&seal.seq)
            .ok_or_else(|| not_found(format!("checkpoint {} of job {}", seal.seq, seal.job)))?;
        match checkpoint.state {
            CheckpointState::Open => {}
            CheckpointState::Sealed if checkpoint.manifest_root == Some(seal.root) => {
                return Ok(Response::Done);
            }
            CheckpointState::Sealed => {
                return Err(conflict(format!("{} is sealed with other bytes than these", seal.seq)));
            }
            _ => return Err(conflict(format!("{} is not open any more", seal.seq))),
        }
        if checkpoint.attempt != seal.attempt {
            return Err(conflict(format!(
                "{} belongs to {}, not to {}",
                seal.seq, checkpoint.attempt, seal.attempt
            )));
        }
        if !planted!(SealWithoutAttempt) {
            self.current_attempt(&seal.attempt)?;
        }
        check_order(job, checkpoint)?;
        self.check_shards(checkpoint, seal)?;
        self.commit_seal(cx, seal);
        Ok(Response::Done)
    }

    fn check_shards(&self, checkpoint: &Checkpoint, seal: &Seal<'_>) -> Result<(), Refusal> {
        if seal.durability == Durability::Stored {
            return Err(invalid("a checkpoint is sealed first and goes to the object store after"));
        }
        let complete = seal.shards.len() == checkpoint.world_size as usize
            && seal.shards.iter().zip(0..).all(|(shard, rank): (&SealedShard, u32)| shard.rank == rank);
        if !complete {
            return Err(invalid(format!(
                "a seal names all ranks: 0 to {}",
                checkpoint.world_size.saturating_sub(1)
            )));
        }
        seal.shards.iter().try_for_each(|shard| self.check_holders(seal, shard))
    }

    fn check_holders(&self, seal: &Seal<'_>, shard: &SealedShard) -> Result<(), Refusal> {
        let rank = shard.rank;
        if !(1..=HOLDERS_MAX).contains(&shard.holders.len()) {
            return Err(invalid(format!("rank {rank} needs 1 to {HOLDERS_MAX} holders")));
        }
        if let Some(gone) = shard.holders.iter().find(|holder| !self.is_live_holder(holder)) {
            return Err(conflict(format!(
                "{} is lost or has another disk: it holds rank {rank} no more",
                gone.node
            )));
        }
        let replicated = seal.durability == Durability::Replicated && !seal.degraded;
        if replicated && self.live_domains_of(&shard.holders) < 2 {
            return Err(conflict(format!(
                "rank {rank} is in one failure domain only, which is not replicated"
            )));
        }
        Ok(())
    }

    fn commit_seal(&mut self, cx: &mut Context<'_>, seal: &Seal<'_>) {
        let Some(job) = self.jobs.get_mut(&seal.job) else { return };
        let stale = is_stale(job, seal);
        let Some(checkpoint) = job.checkpoints.get_mut(&seal.seq) else { return };
        checkpoint.state = CheckpointState::Sealed;
        checkpoint.sealed_at = Some(cx.at);
        checkpoint.shards = seal.shards.iter().map(shard_record).collect();
        checkpoint.manifest_root = Some(seal.root);
        checkpoint.durability = Some(seal.durability);
        checkpoint.degraded = seal.degraded;
        checkpoint.stale = stale;
        let step = checkpoint.step;
        cx.tell(Event::CheckpointSealed { job: seal.job, seq: seal.seq, step });
        if stale {
            cx.tell(Event::CheckpointStale { job: seal.job, seq: seal.seq, step });
        }
        if let Some(group) = job.groups.get_mut(seal.attempt.group.index as usize) {
            reset_budgets(group);
        }
        let passed = |open: &&mut Checkpoint| {
            open.state == CheckpointState::Open && open.attempt == seal.attempt && open.step < step
        };
        for open in job.checkpoints.values_mut().filter(passed) {
            let reason = format!("step {step} was sealed first");
            open.state = CheckpointState::Aborted;
            open.reason = Some(reason.clone());
            cx.tell(Event::CheckpointAborted { job: seal.job, seq: open.seq, reason });
        }
        self.trim_checkpoints(cx, seal.job);
    }
}

/// Invariant 34: an attempt's sealed steps only grow.
fn check_order(job: &Job, checkpoint: &Checkpoint) -> Result<(), Refusal> {
    let of_attempt = job.checkpoints.values().filter(|other| other.attempt == checkpoint.attempt);
    match newest_sealed_step(of_attempt) {
        Some(sealed) if checkpoint.step <= sealed => {
            Err(conflict(format!("step {sealed} is sealed already; {} is not newer", checkpoint.step)))
        }
        _ => Ok(()),
    }
}

/// Compares with the newest sealed checkpoint of the same attempt: one comparison a rank.
fn is_stale(job: &Job, seal: &Seal<'_>) -> bool {
    let of_attempt = |other: &&Checkpoint| other.attempt == seal.attempt && other.sealed_at.is_some();
    let Some(before) = job.checkpoints.values().filter(of_attempt).max_by_key(|other| other.step) else {
        return false;
    };
    let same = before.shards.iter().zip(seal.shards).filter(|(old, new)| old.root == new.root).count();
    !before.shards.is_empty() && same * 100 >= before.shards.len() * STALE_PERCENT
}

fn shard_record(shard: &SealedShard) -> ShardRecord {
    let mut holders: Vec<Holder> = shard.holders.clone();
    holders.sort();
    holders.dedup();
    ShardRecord {
        rank: shard.rank,
        root: shard.root,
        size_bytes: shard.size_bytes,
        holders,
        orders: Vec::new(),
        failed_copies: Vec::new(),
        copies_failed: 0,
    }
}
