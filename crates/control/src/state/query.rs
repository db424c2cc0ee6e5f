//! Questions that the planner, the services and the sessions ask of the state. None of them searches finished jobs,
//! except a look-up by the name of one.

use std::collections::BTreeSet;

use outlast_types::{
    AttemptId, CheckpointSeq, Durability, GroupId, JobId, JobSpec, Millis, NodeId, NodeResources, WallTime,
};

use crate::planted::planted;

use super::{
    Assignment, Attempt, Checkpoint, CheckpointState, ClusterState, Group, Holder, Job, Node, NodeCondition,
    ShardRecord, ShardTask,
};

/// Where copies of a shard may go; the agent takes the first ones that answer.
const REPLICA_PEERS_MAX: usize = 8;

impl Group {
    /// Any attempt that is still in the history.
    pub fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.attempts.get(self.position(id)?)
    }

    pub(super) fn position(&self, id: &AttemptId) -> Option<usize> {
        let key = (id.generation, id.number);
        self.attempts.binary_search_by_key(&key, |attempt| (attempt.id.generation, attempt.id.number)).ok()
    }
}

impl Job {
    /// Any attempt that is still in the history.
    pub fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.group(id.group.index)?.attempt(id)
    }

    /// Whether the job is on its way out: no attempt of it may start any more (invariant 19).
    pub fn is_ending(&self) -> bool {
        self.failing || self.state.is_final() || self.state == super::JobState::Cancelling
    }

    /// The sealed checkpoints of one group, newest first.
    pub fn sealed_of(&self, group: u32) -> Vec<&Checkpoint> {
        let of_group =
            |checkpoint: &&Checkpoint| checkpoint.is_sealed() && checkpoint.attempt.group.index == group;
        let mut sealed: Vec<&Checkpoint> = self.checkpoints.values().filter(of_group).collect();
        sealed.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.recency()));
        sealed
    }
}

impl ClusterState {
    /// A job by id (`j12`), by the name of an unfinished one, or by the name of the newest finished one.
    pub fn job_by_name_or_id(&self, text: &str) -> Option<&Job> {
        if let Some(job) = text.parse::<JobId>().ok().and_then(|id| self.jobs.get(&id)) {
            return Some(job);
        }
        match self.index.names.get(text) {
            Some(id) => self.jobs.get(id),
            None => self.jobs.values().rev().find(|job| job.spec.name == text),
        }
    }

    pub fn group(&self, id: &GroupId) -> Option<&Group> {
        self.jobs.get(&id.job)?.group(id.index)
    }

    /// An attempt that is still in its group's history.
    pub fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.jobs.get(&id.group.job)?.attempt(id)
    }

    /// Whether the attempt may act for its group (invariant 24).
    pub fn is_current(&self, id: &AttemptId) -> bool {
        self.group(&id.group).and_then(Group::current).is_some_and(|attempt| attempt.id == *id)
    }

    /// Jobs that are not final, or that still hold something.
    pub fn active_jobs(&self) -> impl Iterator<Item = &Job> {
        self.index.active.iter().filter_map(|id| self.jobs.get(id))
    }

    /// Attempts that failed within so long before `now`, newest first, of finished jobs that are still in the state too.
    pub fn failures_within(
        &self,
        window_ms: Millis,
        now: WallTime,
    ) -> impl Iterator<Item = (WallTime, &Attempt)> {
        let recent = move |(at, _): &&(WallTime, AttemptId)| now.since(*at) <= window_ms;
        let failures = self.index.failures.iter().rev().take_while(recent);
        failures.filter_map(|(at, id)| Some((*at, self.attempt(id)?)))
    }

    /// Everything that is held on a node, whatever became of its attempt.
    pub fn held_on(&self, node: &NodeId) -> impl Iterator<Item = (&Job, &Group, &Attempt, &Assignment)> {
        self.index.held.get(node).into_iter().flatten().filter_map(|(id, rank)| {
            let job = self.jobs.get(&id.group.job)?;
            let group = job.group(id.group.index)?;
            let attempt = group.attempt(id)?;
            Some((job, group, attempt, attempt.assignment(*rank)?))
        })
    }

    /// How many assignments the job holds anywhere.
    pub fn held_by_job(&self, job: JobId) -> usize {
        self.index.held_by(job)
    }

    /// What is left of a node; nothing for an unknown one. `gpus`: the free devices.
    pub fn free_resources(&self, node: &NodeId) -> NodeResources {
        let mut free = self.nodes.get(node).map(|node| node.resources.clone()).unwrap_or_default();
        for (_, _, _, assignment) in self.held_on(node).filter(|_| !planted!(DoubleCapacity)) {
            take(&mut free, assignment);
        }
        free
    }

    /// Whether the holder still is that holder: its node is not Lost and has the same disk.
    pub fn is_live_holder(&self, holder: &Holder) -> bool {
        self.nodes
            .get(&holder.node)
            .is_some_and(|node| node.condition == NodeCondition::Registered && node.disk == holder.disk)
    }

    pub fn live_holders<'a>(&'a self, holders: &'a [Holder]) -> impl Iterator<Item = &'a Holder> {
        holders.iter().filter(|holder| self.is_live_holder(holder))
    }

    /// How many failure domains the live ones of these holders are in.
    pub fn live_domains_of(&self, holders: &[Holder]) -> usize {
        let domains: BTreeSet<String> = self
            .live_holders(holders)
            .filter_map(|holder| self.nodes.get(&holder.node))
            .map(|node| if planted!(CountNodes) { node.id.to_string() } else { node.failure_domain() })
            .collect();
        domains.len()
    }

    /// Sealed, and every rank's shard has a live holder, or is in the object store and a node can reach that.
    pub fn is_good(&self, checkpoint: &Checkpoint) -> bool {
        let has_holder = |holders: &[Holder]| self.live_holders(holders).next().is_some();
        let is_held = || checkpoint.shards.iter().all(|shard| has_holder(&shard.holders));
        checkpoint.is_sealed() && (is_held() || checkpoint.stored_at.is_some() && self.reaches_store())
    }

    /// Whether a node that is there was started with an object store.
    pub fn reaches_store(&self) -> bool {
        let reaches = |node: &Node| node.condition == NodeCondition::Registered && node.features.object_store;
        self.nodes.values().any(reaches)
    }

    /// The newest sealed checkpoint of the group, whether it can be read now or not.
    pub fn newest_sealed(&self, group: &GroupId) -> Option<&Checkpoint> {
        self.jobs.get(&group.job)?.sealed_of(group.index).first().copied()
    }

    /// The newest checkpoint that can be restored now.
    pub fn newest_good(&self, group: &GroupId) -> Option<&Checkpoint> {
        self.jobs
            .get(&group.job)?
            .sealed_of(group.index)
            .into_iter()
            .find(|checkpoint| self.is_good(checkpoint))
    }

    /// The failure domains that have a node which is not Lost.
    pub fn live_domains(&self) -> BTreeSet<String> {
        let live = self.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
        live.map(Node::failure_domain).collect()
    }

    /// What the copies that are there now amount to; `None` where a rank of it cannot be read at present.
    pub fn durability_now(&self, checkpoint: &Checkpoint) -> Option<Durability> {
        if !matches!(checkpoint.state, CheckpointState::Sealed | CheckpointState::Quarantined) {
            return None;
        }
        if checkpoint.stored_at.is_some() {
            return Some(Durability::Stored);
        }
        let domains = checkpoint.shards.iter().map(|shard| self.live_domains_of(&shard.holders));
        match domains.min() {
            None | Some(0) => None,
            Some(1) => Some(Durability::Local),
            Some(_) => Some(Durability::Replicated),
        }
    }

    /// The sealed checkpoints that the log believes this node has shards of, on the disk that it has now. Searches all
    /// jobs: for the beginning of a session, not for every entry.
    pub fn held_by_log(&self, node: &NodeId) -> Vec<(JobId, CheckpointSeq)> {
        let is_here = |holder: &Holder| holder.node == *node && self.is_live_holder(holder);
        let holds = |checkpoint: &&Checkpoint| {
            let mut holders = checkpoint.shards.iter().flat_map(|shard| &shard.holders);
            checkpoint.is_sealed() && holders.any(is_here)
        };
        let of_job = |job: &Job| {
            let held = job.checkpoints.values().filter(holds);
            held.map(|checkpoint| (job.id, checkpoint.seq)).collect::<Vec<_>>()
        };
        self.jobs.values().flat_map(of_job).collect()
    }

    /// Whom a rank on this node gives copies to, best first: other failure domains, nodes that are on their way out last.
    /// The ranks begin at different ones, so that the copies spread.
    pub fn replica_peers(&self, node: &NodeId, rank: u32) -> Vec<&Node> {
        let own_domain = self.nodes.get(node).map(Node::failure_domain);
        let mut classes: [Vec<&Node>; 3] = Default::default();
        let is_other = |other: &&Node| other.id != *node && other.condition == NodeCondition::Registered;
        for other in self.nodes.values().filter(is_other) {
            let class = match (other.draining, Some(other.failure_domain()) == own_domain) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            };
            classes[class].push(other);
        }
        for class in &mut classes {
            let turn = rank as usize % class.len().max(1);
            class.rotate_left(turn);
        }
        classes.into_iter().flatten().take(REPLICA_PEERS_MAX).collect()
    }

    /// The level that the job's checkpoints should have now.
    pub fn durability_wanted(&self, spec: &JobSpec) -> Durability {
        Self::wanted_durability(spec, self.live_domains().len())
    }

    /// What a node was told to do with shards, with the checkpoint of each.
    pub fn orders_of(
        &self,
        node: &NodeId,
    ) -> impl Iterator<Item = (ShardTask, &Checkpoint, &ShardRecord)> + use<'_> {
        self.index.orders.get(node).into_iter().flatten().filter_map(|(job, seq, rank, task)| {
            let checkpoint = self.jobs.get(job)?.checkpoints.get(seq)?;
            Some((*task, checkpoint, checkpoint.shard(*rank)?))
        })
    }

    /// The level that a seal of this job should reach, given the failure domains that are alive. Where the job says
    /// nothing: `replicated` where there are two or more.
    pub fn wanted_durability(spec: &JobSpec, live_domains: usize) -> Durability {
        match spec.checkpoint.durability {
            Some(wanted) => wanted,
            None if live_domains >= 2 => Durability::Replicated,
            None => Durability::Local,
        }
    }
}

/// Subtracts what an assignment holds.
fn take(free: &mut NodeResources, assignment: &Assignment) {
    free.cpu_millis = free.cpu_millis.saturating_sub(assignment.resources.cpu_millis);
    free.memory.0 = free.memory.0.saturating_sub(assignment.resources.memory.0);
    free.gpus.retain(|gpu| !assignment.gpus.contains(&gpu.index));
    for (name, count) in &assignment.resources.custom {
        if let Some(left) = free.custom.get_mut(name) {
            *left = left.saturating_sub(*count);
        }
    }
}
