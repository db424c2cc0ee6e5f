//! The state: as if a backup had been taken when the newest seal was told, with all that only the coordinators knew left
//! out. `OpenGeneration` makes a new cluster of it, as of a backup.

use std::collections::{BTreeMap, BTreeSet};

use outlast_types::{
    Actor, AttemptId, CheckpointSeq, Durability, GroupId, JobId, NodeId, Profile, RegistrationId, RequestId,
    WallTime,
};

use super::{FoundNode, FoundSeal, LeftOut, Lineage, Remains, SealSource};
use crate::state::apply::{HOLDERS_MAX, check_spec, new_group};
use crate::state::cluster::FIRST_FEATURE_LEVEL;
use crate::state::{
    Bundle, Checkpoint, CheckpointState, ClusterConfig, ClusterState, Group, Holder, Job, JobState, Limits,
    Node, NodeCondition, NodeFeatures, ShardRecord,
};

/// The state's only entry: what came before it is gone.
const FIRST_INDEX: u64 = 1;

/// A state, and what is to be said of it.
#[derive(Clone, Debug)]
pub struct Restored {
    pub state: ClusterState,
    /// By number.
    pub jobs: Vec<RestoredJob>,
    pub left_out: Vec<LeftOut>,
}

/// A job that comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredJob {
    pub id: JobId,
    pub name: String,
    /// Its newest checkpoint, and the step of that.
    pub newest: (CheckpointSeq, u64),
    pub checkpoints: usize,
    /// Of its newest checkpoint.
    pub size_bytes: u64,
    /// Nodes that have bytes of its newest checkpoint.
    pub nodes: BTreeSet<NodeId>,
    /// The object store has its newest checkpoint.
    pub stored: bool,
    /// It comes back cancelled, for this reason: its checkpoints are kept, and it does not run.
    pub cancelled: Option<String>,
}

/// All tellings of one checkpoint.
struct Told<'a> {
    seal: &'a FoundSeal,
    holders: Vec<BTreeSet<Holder>>,
    stored: bool,
}

type Key = (JobId, AttemptId, CheckpointSeq);

impl Remains {
    /// Makes the state of one cluster. `ended`: jobs, by number or name, that are known to have ended.
    pub fn restore(
        &self,
        lineage: &Lineage,
        profile: Option<Profile>,
        ended: &BTreeSet<String>,
        at: WallTime,
    ) -> Restored {
        let mut left_out = self.damaged.clone();
        let nodes = self.nodes_of(lineage, &mut left_out);
        let told = self.tellings(lineage, &nodes, &mut left_out);
        let mut of_job: BTreeMap<JobId, Vec<Told<'_>>> = BTreeMap::new();
        for ((job, ..), told) in told {
            of_job.entry(job).or_default().push(told);
        }
        let mut state = ClusterState::new();
        let told_profile = self.seals.iter().rev().filter(|seal| lineage.has(&seal.cluster));
        let told_profile = told_profile.filter_map(|seal| seal.profile).next();
        state.config = Some(ClusterConfig {
            cluster_id: lineage.cluster.clone(),
            profile: profile.or(told_profile).unwrap_or_default(),
            predecessors: lineage.predecessors.clone(),
        });
        state.applied = FIRST_INDEX;
        state.nodes = nodes.values().map(|node| (node.id.clone(), node_record(node, at))).collect();
        let mut jobs: Vec<(Job, RestoredJob)> = of_job
            .into_iter()
            .filter_map(|(id, told)| self.job(id, &told, &nodes, at).map_err(|one| left_out.push(one)).ok())
            .collect();
        end(&mut jobs, ended, at);
        self.count(lineage, &mut state, &mut jobs);
        let (records, jobs): (Vec<Job>, Vec<RestoredJob>) = jobs.into_iter().unzip();
        state.jobs = records.into_iter().map(|job| (job.id, job)).collect();
        state.index = state.derive_index();
        left_out.sort();
        Restored { state, jobs, left_out }
    }

    /// Agents of this cluster, each once.
    fn nodes_of<'a>(
        &'a self,
        lineage: &Lineage,
        left_out: &mut Vec<LeftOut>,
    ) -> BTreeMap<&'a NodeId, &'a FoundNode> {
        let mut nodes: BTreeMap<&NodeId, &FoundNode> = BTreeMap::new();
        let ours = |node: &&FoundNode| node.cluster.as_ref().is_some_and(|cluster| lineage.has(cluster));
        for node in self.nodes.iter().filter(ours) {
            let known = nodes.entry(&node.id).or_insert(node);
            if known.disk != node.disk {
                let reason = format!(
                    "two agents are called {}, at {} and {}: the second one's bytes are not counted",
                    node.id, known.address, node.address
                );
                left_out.push(LeftOut { job: None, checkpoint: None, reason });
            }
        }
        nodes
    }

    fn tellings<'a>(
        &'a self,
        lineage: &Lineage,
        nodes: &BTreeMap<&NodeId, &FoundNode>,
        left_out: &mut Vec<LeftOut>,
    ) -> BTreeMap<Key, Told<'a>> {
        let mut told: BTreeMap<Key, Told<'_>> = BTreeMap::new();
        let mut torn = BTreeSet::new();
        for seal in self.seals.iter().filter(|seal| lineage.has(&seal.cluster)) {
            let key = (seal.attempt.group.job, seal.attempt, seal.seq);
            let empty = || Told { seal, holders: vec![BTreeSet::new(); seal.shards.len()], stored: false };
            let one = told.entry(key).or_insert_with(empty);
            if one.seal.manifest_root != seal.manifest_root {
                torn.insert(key);
                continue;
            }
            match &seal.source {
                SealSource::Store => one.stored = true,
                SealSource::Node { holder, ranks }
                    if nodes.get(&holder.node).is_some_and(|node| node.disk == holder.disk) =>
                {
                    for rank in ranks {
                        one.holders.get_mut(*rank as usize).map(|holders| holders.insert(holder.clone()));
                    }
                }
                SealSource::Node { .. } => {}
            }
        }
        told.retain(|key, one| {
            let why = match torn.contains(key) {
                true => Some("two seals of it name different bytes".to_owned()),
                false => missing(one),
            };
            left_out.extend(why.clone().map(|reason| left_out_of(key.0, Some(key.2), reason)));
            why.is_none()
        });
        told
    }

    fn job(
        &self,
        id: JobId,
        told: &[Told<'_>],
        nodes: &BTreeMap<&NodeId, &FoundNode>,
        at: WallTime,
    ) -> Result<(Job, RestoredJob), LeftOut> {
        let checkpoints: Vec<Checkpoint> = told.iter().map(|told| checkpoint(told, at)).collect();
        let newest = checkpoints.iter().zip(told).max_by_key(|(checkpoint, _)| checkpoint.recency());
        let (newest, of_newest) = newest.expect("a job is known by its checkpoints");
        let spec = of_newest.seal.spec.clone();
        check_spec(&spec).map_err(|refusal| left_out_of(id, None, refusal.to_string()))?;
        let (groups, _) = spec.shape();
        if let Some(stray) = checkpoints.iter().find(|checkpoint| checkpoint.attempt.group.index >= groups) {
            let reason = format!("it has {groups} groups, and {} is of another one", stray.attempt.group);
            return Err(left_out_of(id, Some(stray.seq), reason));
        }
        let bundle = of_newest.seal.bundle.map(|(digest, size_bytes)| {
            let has = |node: &&&FoundNode| node.bundles.contains(&digest);
            let holders = nodes.values().filter(has).map(|node| node.id.clone()).collect();
            Bundle { digest, size_bytes, holders }
        });
        let is_lost =
            |bundle: &&Bundle| bundle.holders.is_empty() && !self.stored_bundles.contains(&bundle.digest);
        let cancelled = bundle.as_ref().filter(is_lost).map(|bundle| {
            format!("the files that it brings along (bundle {}) were not found", bundle.digest)
        });
        let summary = RestoredJob {
            id,
            name: spec.name.clone(),
            newest: (newest.seq, newest.step),
            checkpoints: checkpoints.len(),
            size_bytes: newest.size_bytes(),
            nodes: newest.shards.iter().flat_map(|shard| &shard.holders).map(|h| h.node.clone()).collect(),
            stored: newest.stored_at.is_some(),
            cancelled,
        };
        let request = RequestId::new(format!("restored-{id}")).expect("letters and digits only");
        let job = Job {
            id,
            spec,
            request,
            actor: Actor::System,
            submitted_at: checkpoints.iter().map(|checkpoint| checkpoint.opened_at).min().unwrap_or(at),
            finished_at: None,
            state: JobState::Pending,
            failing: false,
            reason: None,
            bundle,
            groups: (0..groups).map(|index| self.group(GroupId { job: id, index })).collect(),
            next_checkpoint: self.seqs_of(id).max().unwrap_or(0).saturating_add(1),
            checkpoints: checkpoints.into_iter().map(|checkpoint| (checkpoint.seq, checkpoint)).collect(),
        };
        Ok((job, summary))
    }

    /// Every attempt and checkpoint number that was told of.
    fn given_away(&self) -> impl Iterator<Item = (AttemptId, CheckpointSeq)> {
        let sealed = self.seals.iter().map(|seal| (seal.attempt, seal.seq));
        sealed.chain(self.numbers.iter().copied())
    }

    fn seqs_of(&self, job: JobId) -> impl Iterator<Item = u64> {
        self.given_away().filter(move |(attempt, _)| attempt.group.job == job).map(|(_, seq)| seq.0)
    }

    fn group(&self, id: GroupId) -> Group {
        let numbers = self.given_away().filter(|(attempt, _)| attempt.group == id);
        let newest = numbers.map(|(attempt, _)| attempt.number).max().unwrap_or(0);
        Group { next_number: newest.saturating_add(1), ..new_group(id) }
    }

    /// Nothing that was given away is given again, whoever it was given to.
    fn count(&self, lineage: &Lineage, state: &mut ClusterState, jobs: &mut [(Job, RestoredJob)]) {
        let seen = |(attempt, _): (AttemptId, CheckpointSeq)| (attempt.generation, attempt.group.job.0);
        let (generations, numbers): (Vec<u64>, Vec<u64>) = self.given_away().map(seen).unzip();
        let told = generations.into_iter().max().unwrap_or(1).max(1);
        // A cluster that went on from others gave numbers away too, even where nothing that bears one was found.
        state.generation = told.max(1 + lineage.predecessors.len() as u64);
        let untold = Limits::NUMBERS_SKIPPED.saturating_mul(state.generation - told);
        let newest = jobs.iter().map(|(job, _)| job.id.0).chain(numbers).max().unwrap_or(0);
        state.next_job = newest.saturating_add(1).saturating_add(untold);
        for (job, _) in jobs {
            job.next_checkpoint = job.next_checkpoint.saturating_add(untold);
        }
    }
}

/// A rank whose bytes nobody told of.
fn missing(told: &Told<'_>) -> Option<String> {
    let rank = told.holders.iter().position(BTreeSet::is_empty).filter(|_| !told.stored)?;
    Some(format!("nobody that was asked has the bytes of rank {rank}"))
}

fn left_out_of(job: JobId, checkpoint: Option<CheckpointSeq>, reason: String) -> LeftOut {
    LeftOut { job: Some(job), checkpoint, reason }
}

fn checkpoint(told: &Told<'_>, at: WallTime) -> Checkpoint {
    let FoundSeal { attempt, seq, step, manifest_root, shards, opened_at, sealed_at, spec, .. } = told.seal;
    let copies = told.holders.iter().map(BTreeSet::len).min().unwrap_or(0);
    // A node without labels is a failure domain of its own, and what labels there were is not known yet.
    let durability = match (told.stored, copies) {
        (true, _) => Durability::Stored,
        (false, 0 | 1) => Durability::Local,
        (false, _) => Durability::Replicated,
    };
    let wants_more = spec.checkpoint.durability != Some(Durability::Local);
    let shard = |((root, size_bytes), (rank, holders)): (&_, (u32, &BTreeSet<Holder>))| ShardRecord {
        rank,
        root: *root,
        size_bytes: *size_bytes,
        holders: holders.iter().take(HOLDERS_MAX).cloned().collect(),
        orders: Vec::new(),
        failed_copies: Vec::new(),
        copies_failed: 0,
    };
    Checkpoint {
        seq: *seq,
        step: *step,
        attempt: *attempt,
        world_size: shards.len() as u32,
        state: CheckpointState::Sealed,
        opened_at: opened_at.or(*sealed_at).unwrap_or(at),
        sealed_at: Some(sealed_at.unwrap_or(at)),
        shards: shards.iter().zip((0..).zip(&told.holders)).map(shard).collect(),
        manifest_root: Some(*manifest_root),
        durability: Some(durability),
        degraded: durability == Durability::Local && wants_more,
        proven: false,
        pinned: false,
        stale: false,
        stored_at: told.stored.then_some(at),
        reason: None,
    }
}

/// As its agent registers anew, all of this is told again.
fn node_record(found: &FoundNode, at: WallTime) -> Node {
    Node {
        id: found.id.clone(),
        registration: RegistrationId(0),
        serial: 0,
        boot: found.boot.clone(),
        disk: found.disk.clone(),
        address: found.address.clone(),
        data_address: None,
        resources: Default::default(),
        labels: BTreeMap::new(),
        operator_labels: BTreeMap::new(),
        features: NodeFeatures::default(),
        feature_level: FIRST_FEATURE_LEVEL,
        condition: NodeCondition::Registered,
        registered_at: at,
        registered_index: FIRST_INDEX,
        past_registrations: Vec::new(),
        watched_since: at,
        lost_at: None,
        cordoned: false,
        draining: false,
        quarantined: None,
        observed: 0,
        assignments_changed_at: FIRST_INDEX,
    }
}

/// Jobs that had ended, as far as anybody can say. Two unfinished jobs never had one name, so of two that have it the
/// older one was over.
fn end(jobs: &mut [(Job, RestoredJob)], ended: &BTreeSet<String>, at: WallTime) {
    let mut newer: BTreeMap<String, JobId> = BTreeMap::new();
    for (job, summary) in jobs.iter_mut().rev() {
        let is_named = ended.contains(&job.id.to_string())
            || ended.contains(&job.spec.name) && !newer.contains_key(&job.spec.name);
        let why = match newer.get(&job.spec.name) {
            _ if is_named => Some("it had ended, says who restored the cluster".to_owned()),
            Some(other) => Some(format!("it had ended: {other} has its name")),
            None => summary.cancelled.take(),
        };
        newer.entry(job.spec.name.clone()).or_insert(job.id);
        if let Some(reason) = &why {
            (job.state, job.finished_at, job.reason) = (JobState::Cancelled, Some(at), Some(reason.clone()));
            job.groups.iter_mut().for_each(|group| group.done = true);
        }
        summary.cancelled = why;
    }
}
