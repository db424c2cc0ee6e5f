//! The leader's soft memory: what it was told and when it first saw something. Lost with the leader; a new one is told
//! again, or starts its waits anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outlast_types::{AttemptId, BootTime, CheckpointSeq, Digest, GroupId, JobId, Millis, NodeId};

use super::{Now, SaveCost};
use crate::state::{
    AttemptPhase, Checkpoint, CheckpointState, ClusterState, Group, Holder, Job, ShardRecord, ShardTask,
};

/// Intervals between steps that are remembered: long enough to have seen an evaluation or a save among them.
const INTERVALS_KEPT: usize = 32;
/// Costs of saves that are remembered for a rank: one slow disk for a moment must not change how often it saves.
const SAVE_COSTS_KEPT: usize = 5;
/// Between two looks at the checkpoints of finished jobs.
const FINISHED_EVERY_MS: Millis = 5_000;

/// One rank's steps, as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: u64,
    pub at: BootTime,
    /// Times between the newest steps, newest last.
    intervals: VecDeque<Millis>,
}

impl Progress {
    /// The longest recent time between two steps; `None` before the second one.
    pub fn longest_ms(&self) -> Option<Millis> {
        self.intervals.iter().copied().max()
    }
}

/// What was received of one rank's shard.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Receipt {
    pub root: Option<Digest>,
    pub size_bytes: u64,
    pub holders: BTreeSet<Holder>,
    /// The worker has handed the bytes over; the agent is still writing.
    pub staged: bool,
    /// Why this rank's part will never come.
    pub failed: Option<String>,
}

/// Ranks of one checkpoint, with the first time at which each had at least one holder.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Gathered {
    pub(super) ranks: BTreeMap<u32, Receipt>,
    pub(super) complete_since: Option<BootTime>,
}

impl Gathered {
    /// The rank whose part will never come, in a sentence.
    pub(super) fn failure(&self) -> Option<String> {
        let failed = self.ranks.iter().filter(|(_, receipt)| receipt.root.is_none());
        failed.filter_map(|(rank, receipt)| Some(format!("rank {rank}: {}", receipt.failed.as_ref()?))).next()
    }
}

/// A proof under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Proving {
    node: NodeId,
    since: BootTime,
    /// Nodes that were told before it, and are not asked any more.
    before: u32,
}

/// The middle one, the lower of two.
fn median(values: impl Iterator<Item = Millis>) -> Option<Millis> {
    let mut values: Vec<Millis> = values.collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observations {
    pub leader_since: BootTime,
    /// Nodes that get nothing new (from the lease table).
    pub suspects: BTreeSet<NodeId>,
    /// Nodes that get nothing new either, because of their health, with what is wrong.
    pub ailing: BTreeMap<NodeId, String>,
    pub(super) progress: BTreeMap<(AttemptId, u32), Progress>,
    pub(super) gathered: BTreeMap<(JobId, CheckpointSeq), Gathered>,
    /// When an attempt was first seen Starting, Running, Stopping, with a checkpoint requested; a checkpoint Open; a group with
    /// its newest sealed checkpoint out of reach.
    pub(super) starting_since: BTreeMap<AttemptId, BootTime>,
    pub(super) running_since: BTreeMap<AttemptId, BootTime>,
    pub(super) stopping_since: BTreeMap<AttemptId, BootTime>,
    pub(super) requested_since: BTreeMap<AttemptId, BootTime>,
    pub(super) open_since: BTreeMap<(JobId, CheckpointSeq), BootTime>,
    pub(super) unreachable_since: BTreeMap<(GroupId, CheckpointSeq), BootTime>,
    /// What each rank's newest few saves cost, newest last.
    save_costs: BTreeMap<(AttemptId, u32), VecDeque<SaveCost>>,
    /// Who was told to read which shard back, and since when.
    proving: BTreeMap<(JobId, CheckpointSeq, u32), Proving>,
    /// Orders that agents say they have carried out.
    done: BTreeMap<(JobId, CheckpointSeq, ShardTask), BTreeMap<u32, NodeId>>,
    /// Whether this pass looks after the checkpoints of finished jobs too: there may be many.
    pub(super) looks_at_finished: bool,
    finished_looked_at: Option<BootTime>,
}

impl Observations {
    pub fn new(leader_since: BootTime) -> Self {
        Self {
            leader_since,
            suspects: BTreeSet::new(),
            ailing: BTreeMap::new(),
            progress: BTreeMap::new(),
            gathered: BTreeMap::new(),
            starting_since: BTreeMap::new(),
            running_since: BTreeMap::new(),
            stopping_since: BTreeMap::new(),
            requested_since: BTreeMap::new(),
            open_since: BTreeMap::new(),
            unreachable_since: BTreeMap::new(),
            save_costs: BTreeMap::new(),
            proving: BTreeMap::new(),
            done: BTreeMap::new(),
            looks_at_finished: false,
            finished_looked_at: None,
        }
    }

    /// What a rank's newest save cost it. Told again with every heartbeat: the same figures are the same save.
    pub fn note_save_cost(&mut self, attempt: AttemptId, rank: u32, cost: SaveCost) {
        let costs = self.save_costs.entry((attempt, rank)).or_default();
        if costs.back() == Some(&cost) {
            return;
        }
        costs.push_back(cost);
        if costs.len() > SAVE_COSTS_KEPT {
            costs.pop_front();
        }
    }

    /// What saving costs a rank, without the outliers; `None` before its first save.
    pub(super) fn save_cost(&self, attempt: AttemptId, rank: u32) -> Option<SaveCost> {
        let costs = self.save_costs.get(&(attempt, rank))?;
        let stall_ms = median(costs.iter().map(|cost| cost.stall_ms))?;
        Some(SaveCost { stall_ms, write_ms: median(costs.iter().map(|cost| cost.write_ms))? })
    }

    /// How long the node that was told to read a shard back has been at it, and how many were told before it.
    pub(super) fn proving_for(
        &self,
        (job, seq): (JobId, CheckpointSeq),
        rank: u32,
        now: BootTime,
    ) -> Option<(Millis, u32)> {
        let Proving { node, since, before } = self.proving.get(&(job, seq, rank))?;
        let done = self.done.get(&(job, seq, ShardTask::Prove)).and_then(|done| done.get(&rank));
        (done != Some(node)).then(|| (now.since(*since), *before))
    }

    /// A node has carried out what it was told to do with a rank's shard. Repeated by agents until the order is gone.
    pub fn note_done(
        &mut self,
        (job, seq): (JobId, CheckpointSeq),
        rank: u32,
        task: ShardTask,
        node: NodeId,
    ) {
        self.done.entry((job, seq, task)).or_default().insert(rank, node);
    }

    /// Whether every rank of the checkpoint is done.
    pub(super) fn is_done_everywhere(&self, job: JobId, checkpoint: &Checkpoint, task: ShardTask) -> bool {
        let Some(done) = self.done.get(&(job, checkpoint.seq, task)) else { return false };
        // By who has the order now: what an earlier one did, it did with a copy that may be gone.
        let is_done = |shard: &ShardRecord| {
            let told = shard.ordered(task);
            told.is_some() && done.get(&shard.rank) == told
        };
        !checkpoint.shards.is_empty() && checkpoint.shards.iter().all(is_done)
    }

    /// A worker reported a step. Only a higher one is progress.
    pub fn note_step(&mut self, attempt: AttemptId, rank: u32, step: u64, at: BootTime) {
        let Some(progress) = self.progress.get_mut(&(attempt, rank)) else {
            self.progress.insert((attempt, rank), Progress { step, at, intervals: VecDeque::new() });
            return;
        };
        if step <= progress.step {
            return;
        }
        progress.intervals.push_back(at.since(progress.at));
        if progress.intervals.len() > INTERVALS_KEPT {
            progress.intervals.pop_front();
        }
        progress.step = step;
        progress.at = progress.at.max(at);
    }

    pub fn progress(&self, attempt: AttemptId, rank: u32) -> Option<&Progress> {
        self.progress.get(&(attempt, rank))
    }

    /// A holder has a rank's shard, durable and verified. Bytes with another root replace the older ones: the worker's
    /// agent has written the shard anew.
    pub fn note_receipt(
        &mut self,
        (job, seq): (JobId, CheckpointSeq),
        rank: u32,
        root: Digest,
        size_bytes: u64,
        holders: impl IntoIterator<Item = Holder>,
    ) {
        let receipt = self.gathered.entry((job, seq)).or_default().ranks.entry(rank).or_default();
        if receipt.root != Some(root) {
            *receipt = Receipt { root: Some(root), size_bytes, staged: receipt.staged, ..Receipt::default() };
        }
        receipt.holders.extend(holders);
    }

    pub fn note_staged(&mut self, job: JobId, seq: CheckpointSeq, rank: u32) {
        self.gathered.entry((job, seq)).or_default().ranks.entry(rank).or_default().staged = true;
    }

    /// A rank's part will never come: its disk is full, or its worker's bytes could not be read.
    pub fn note_failed(&mut self, job: JobId, seq: CheckpointSeq, rank: u32, why: String) {
        self.gathered.entry((job, seq)).or_default().ranks.entry(rank).or_default().failed = Some(why);
    }

    pub fn receipt(&self, job: JobId, seq: CheckpointSeq, rank: u32) -> Option<&Receipt> {
        self.gathered.get(&(job, seq))?.ranks.get(&rank)
    }

    /// A node's holders are gone (lost, or a new disk): what it received counts no more.
    pub fn forget_node(&mut self, node: &NodeId) {
        for receipt in self.gathered.values_mut().flat_map(|gathered| gathered.ranks.values_mut()) {
            receipt.holders.retain(|holder| holder.node != *node);
        }
    }

    /// Notes what is new in the state and forgets what is over. Memory is bounded by the active jobs.
    pub fn follow(&mut self, state: &ClusterState, now: Now) {
        let phase = |id: &AttemptId| state.attempt(id).map(|attempt| attempt.phase);
        let starting = |id: &AttemptId| phase(id) == Some(AttemptPhase::Starting);
        let stopping = |id: &AttemptId| phase(id) == Some(AttemptPhase::Stopping);
        let running = |id: &AttemptId| phase(id) == Some(AttemptPhase::Running);
        self.progress.retain(|(id, _), _| state.is_current(id));
        self.starting_since.retain(|id, _| starting(id));
        self.save_costs.retain(|(id, _), _| state.is_current(id));
        self.running_since.retain(|id, _| running(id));
        self.stopping_since.retain(|id, _| stopping(id));
        self.requested_since.retain(|id, _| state.is_current(id));
        let open = |(job, seq): &(JobId, CheckpointSeq)| {
            let checkpoint = state.jobs.get(job).and_then(|job| job.checkpoints.get(seq));
            checkpoint.is_some_and(|checkpoint| checkpoint.state == CheckpointState::Open)
        };
        self.follow_orders(state, now.boot);
        self.gathered.retain(|key, _| open(key));
        self.open_since.retain(|key, _| open(key));
        self.unreachable_since.retain(|(group, seq), _| {
            let checkpoint = state.jobs.get(&group.job).and_then(|job| job.checkpoints.get(seq));
            checkpoint.is_some_and(|checkpoint| checkpoint.is_sealed() && !state.is_good(checkpoint))
        });
        for job in state.active_jobs() {
            for group in &job.groups {
                self.follow_group(state, job, group, now.boot);
            }
            self.follow_checkpoints(state, job, now.boot);
        }
    }

    fn follow_orders(&mut self, state: &ClusterState, now: BootTime) {
        let sealed = |job: &JobId, seq: &CheckpointSeq| {
            let checkpoint = state.jobs.get(job).and_then(|job| job.checkpoints.get(seq));
            checkpoint.filter(|checkpoint| checkpoint.is_sealed())
        };
        // With the order goes its end: the same node may be told again, after it lost its copy and made another.
        self.done.retain(|(job, seq, task), ranks| {
            let Some(checkpoint) = sealed(job, seq) else { return false };
            ranks.retain(|rank, node| {
                checkpoint.shard(*rank).is_some_and(|shard| shard.ordered(*task) == Some(node))
            });
            !ranks.is_empty()
        });
        self.follow_proofs(state, now);
        let is_due = self.finished_looked_at.is_none_or(|at| now.since(at) >= FINISHED_EVERY_MS);
        self.looks_at_finished = is_due;
        if is_due {
            self.finished_looked_at = Some(now);
        }
    }

    fn follow_proofs(&mut self, state: &ClusterState, now: BootTime) {
        let told = state.index.orders.iter().flat_map(|(node, orders)| {
            let proofs = orders.iter().filter(|(_, _, _, task)| *task == ShardTask::Prove);
            proofs.map(move |(job, seq, rank, _)| ((*job, *seq, *rank), node))
        });
        let mut proving = BTreeMap::new();
        for (key, node) in told {
            let known = self.proving.remove(&key);
            let fresh = |before| Proving { node: node.clone(), since: now, before };
            let one = match known {
                Some(known) if known.node == *node => known,
                Some(known) => fresh(known.before.saturating_add(1)),
                None => fresh(0),
            };
            proving.insert(key, one);
        }
        self.proving = proving;
    }

    fn follow_group(&mut self, state: &ClusterState, job: &Job, group: &Group, now: BootTime) {
        let current = group.current();
        if let Some(attempt) = current {
            let since = match attempt.phase {
                AttemptPhase::Starting => Some(&mut self.starting_since),
                AttemptPhase::Running => Some(&mut self.running_since),
                AttemptPhase::Stopping => Some(&mut self.stopping_since),
                AttemptPhase::Ended => None,
            };
            if let Some(since) = since {
                since.entry(attempt.id).or_insert(now);
            }
            if attempt.checkpoint_requested {
                self.requested_since.entry(attempt.id).or_insert(now);
            }
        }
        let runs = current.is_some_and(|attempt| attempt.phase != AttemptPhase::Stopping);
        if group.done || runs || job.is_ending() {
            return;
        }
        for checkpoint in
            job.sealed_of(group.id.index).into_iter().take_while(|newest| !state.is_good(newest))
        {
            self.unreachable_since.entry((group.id, checkpoint.seq)).or_insert(now);
        }
    }

    fn follow_checkpoints(&mut self, state: &ClusterState, job: &Job, now: BootTime) {
        for checkpoint in
            job.checkpoints.values().filter(|checkpoint| checkpoint.state == CheckpointState::Open)
        {
            let key = (job.id, checkpoint.seq);
            self.open_since.entry(key).or_insert(now);
            let Some(gathered) = self.gathered.get_mut(&key) else { continue };
            let held = |rank| {
                let receipt: Option<&Receipt> = gathered.ranks.get(&rank);
                receipt
                    .is_some_and(|receipt| receipt.holders.iter().any(|holder| state.is_live_holder(holder)))
            };
            let complete = (0..checkpoint.world_size).all(held);
            gathered.complete_since = complete.then(|| gathered.complete_since.unwrap_or(now));
        }
    }
}
