//! Checkpoints: invariants 24, 32 to 38.

use std::collections::BTreeSet;

use outlast_control::state::{Checkpoint, CheckpointState, Command, Event, Holder};
use outlast_types::{AttemptId, CheckpointSeq, Digest, Durability, JobId};

use crate::assigned::{ShardKey, WorkerKey};
use crate::world::World;

/// Newer ones beyond `keep` that make up for their being less durable than they were to be.
const SURPLUS: usize = 8;

/// What was seen of a checkpoint.
pub(crate) struct CheckpointSeen {
    attempt: AttemptId,
    step: u64,
    state: CheckpointState,
    was_sealed: bool,
    proven: bool,
    degraded: bool,
    pinned: bool,
}

impl CheckpointSeen {
    fn recency(&self, seq: CheckpointSeq) -> (u64, u64, u64, u64) {
        (self.attempt.generation, self.attempt.number, self.step, seq.0)
    }
}

impl World {
    pub(super) fn note_checkpoint(&mut self, command: &Command, event: &Event) {
        match event {
            Event::CheckpointOpened { attempt, seq, step } => self.opened(*attempt, *seq, *step),
            Event::CheckpointSealed { job, seq, .. } => self.sealed(*job, *seq),
            Event::CheckpointAborted { job, seq, .. } => {
                self.cover.aborts += 1;
                self.becomes(*job, *seq, CheckpointState::Aborted);
            }
            Event::CheckpointQuarantined { job, seq, .. } => {
                self.cover.quarantined += 1;
                self.becomes(*job, *seq, CheckpointState::Quarantined);
            }
            Event::CheckpointRetired { job, seq } => {
                self.cover.retires += 1;
                // A quarantined one goes with its record, when there are too many.
                let was = self.checks.checkpoints.get(&(*job, *seq)).map(|seen| seen.state);
                if matches!(command, Command::RetireCheckpoint { .. })
                    && was != Some(CheckpointState::Quarantined)
                {
                    self.inv_36_the_newest_and_the_needed_stay(*job, *seq);
                }
                self.becomes(*job, *seq, CheckpointState::Retired);
            }
            Event::CheckpointPinned { job, seq, pinned } => {
                if let Some(seen) = self.checks.checkpoints.get_mut(&(*job, *seq)) {
                    seen.pinned = *pinned;
                }
            }
            Event::CheckpointProven { job, seq } => {
                if let Some(seen) = self.checks.checkpoints.get_mut(&(*job, *seq)) {
                    seen.proven = true;
                }
            }
            Event::CheckpointRaised { job, seq, .. } => {
                if let Some(seen) = self.checks.checkpoints.get_mut(&(*job, *seq)) {
                    seen.degraded = false;
                }
            }
            _ => {}
        }
    }

    fn opened(&mut self, attempt: AttemptId, seq: CheckpointSeq, step: u64) {
        self.inv_24_only_the_current_attempt(attempt, "opened");
        let seen = CheckpointSeen {
            attempt,
            step,
            state: CheckpointState::Open,
            was_sealed: false,
            proven: false,
            degraded: false,
            pinned: false,
        };
        if self.checks.checkpoints.insert((attempt.group.job, seq), seen).is_some() {
            self.fail(
                "37 numbers are never reused",
                format!("{seq} of {} was opened twice", attempt.group.job),
            );
        }
    }

    fn inv_24_only_the_current_attempt(&mut self, attempt: AttemptId, what: &str) {
        let current = self.checks.groups.get(&attempt.group).and_then(|group| group.current);
        if current != Some(attempt) {
            self.fail(
                "24 logical exclusivity",
                format!("{attempt} {what} a checkpoint, but {current:?} is current"),
            );
        }
    }

    fn sealed(&mut self, job: JobId, seq: CheckpointSeq) {
        self.cover.seals += 1;
        let Some(checkpoint) =
            self.checks.state.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq)).cloned()
        else {
            return self.fail("33 a seal is complete", format!("{seq} of {job} has no record"));
        };
        self.cover.degraded_seals += u64::from(checkpoint.degraded);
        self.inv_24_only_the_current_attempt(checkpoint.attempt, "sealed");
        self.inv_33_a_seal_is_complete(job, &checkpoint);
        self.inv_34_steps_only_grow(job, &checkpoint);
        self.inv_32_every_holder_has_the_bytes(&checkpoint);
        self.becomes(job, seq, CheckpointState::Sealed);
        if let Some(seen) = self.checks.checkpoints.get_mut(&(job, seq)) {
            seen.was_sealed = true;
            seen.degraded = checkpoint.degraded;
        }
    }

    fn inv_33_a_seal_is_complete(&mut self, job: JobId, checkpoint: &Checkpoint) {
        let world = self.checks.state.attempt(&checkpoint.attempt).map(|attempt| attempt.world_size());
        let ranks: Vec<u32> = checkpoint.shards.iter().map(|shard| shard.rank).collect();
        let whole = world.is_none_or(|world| ranks == (0..world).collect::<Vec<_>>());
        if !whole || checkpoint.shards.iter().any(|shard| shard.holders.is_empty()) {
            self.fail(
                "33 a seal is complete",
                format!("{} of {job} has ranks {ranks:?} of {world:?}", checkpoint.seq),
            );
        }
    }

    fn inv_34_steps_only_grow(&mut self, job: JobId, checkpoint: &Checkpoint) {
        let older =
            self.checks.checkpoints.iter().filter(|((of, _), seen)| {
                *of == job && seen.was_sealed && seen.attempt == checkpoint.attempt
            });
        if older.map(|(_, seen)| seen.step).any(|step| step >= checkpoint.step) {
            self.fail(
                "34 sealed steps only grow",
                format!("{} sealed step {} late", checkpoint.attempt, checkpoint.step),
            );
        }
    }

    /// With its disk still in the machine. A rotten copy is there: nobody has looked yet.
    fn is_physically_there(&self, key: &ShardKey, root: Digest, holder: &Holder) -> bool {
        let agent = &self.agents[self.agent_named(&holder.node)];
        agent.disk_id() != holder.disk
            || agent.folder.shards.get(key).is_some_and(|stored| stored.root == root && stored.synced)
    }

    fn inv_32_every_holder_has_the_bytes(&mut self, checkpoint: &Checkpoint) {
        for shard in &checkpoint.shards {
            let key = ShardKey { attempt: checkpoint.attempt, seq: checkpoint.seq, rank: shard.rank };
            if let Some(holder) =
                shard.holders.iter().find(|holder| !self.was_there(&key, shard.root, holder))
            {
                let why = format!("{} has no durable {key:?}", holder.node);
                return self.fail("32 a seal names who has the bytes", why);
            }
            let domains: BTreeSet<String> =
                shard.holders.iter().map(|holder| self.domain_of(holder)).collect();
            let replicated = checkpoint.durability == Some(Durability::Replicated) && !checkpoint.degraded;
            if replicated && domains.len() < 2 {
                let why = format!("{key:?} is replicated in {domains:?}");
                return self.fail("32 replicated is in two failure domains", why);
            }
        }
    }

    /// There now, or set aside since the receipt because it had rotted.
    fn was_there(&self, key: &ShardKey, root: Digest, holder: &Holder) -> bool {
        let agent = &self.agents[self.agent_named(&holder.node)];
        self.is_physically_there(key, root, holder) || agent.set_aside.contains(key)
    }

    fn domain_of(&self, holder: &Holder) -> String {
        let a = self.agent_named(&holder.node);
        let zone = self.scenario.labels(a).get("zone").cloned();
        zone.unwrap_or_else(|| format!("node {a}"))
    }

    /// A sealed checkpoint's bytes are gone only from disks that lost them: nobody deleted them.
    pub(super) fn inv_32_sealed_bytes_are_where_the_log_says(&mut self) {
        let mut missing = None;
        for checkpoint in self.checks.state.jobs.values().flat_map(|job| job.checkpoints.values()) {
            if !checkpoint.is_sealed() {
                continue;
            }
            for shard in &checkpoint.shards {
                let key = ShardKey { attempt: checkpoint.attempt, seq: checkpoint.seq, rank: shard.rank };
                let gone = shard.holders.iter().find(|holder| !self.was_there(&key, shard.root, holder));
                missing = missing.or(gone.map(|holder| format!("{} has lost {key:?}", holder.node)));
            }
        }
        if let Some(missing) = missing {
            self.fail("32 a sealed checkpoint is never deleted", missing);
        }
    }

    fn becomes(&mut self, job: JobId, seq: CheckpointSeq, state: CheckpointState) {
        use CheckpointState::{Aborted, Open, Quarantined, Retired, Sealed};
        let Some(seen) = self.checks.checkpoints.get_mut(&(job, seq)) else { return };
        let from = std::mem::replace(&mut seen.state, state);
        let may = matches!(
            (from, state),
            (Open, Sealed | Aborted) | (Sealed, Quarantined | Retired) | (Quarantined, Retired)
        );
        if !may {
            self.fail("37 no resurrection", format!("{seq} of {job} went from {from:?} to {state:?}"));
        }
    }

    /// Of what is retired, enough newer ones are sealed and as durable as they were to be (or many more are there), one is
    /// proven; nobody restores it or has pinned it.
    fn inv_36_the_newest_and_the_needed_stay(&mut self, job: JobId, seq: CheckpointSeq) {
        let Some(seen) = self.checks.checkpoints.get(&(job, seq)) else { return };
        let group = seen.attempt.group;
        let recency = seen.recency(seq);
        let newer = self.checks.checkpoints.iter().filter(|((of, other), candidate)| {
            *of == job
                && candidate.attempt.group == group
                && candidate.state == CheckpointState::Sealed
                && candidate.recency(*other) > recency
        });
        let newer: Vec<&CheckpointSeen> = newer.map(|(_, candidate)| candidate).collect();
        let keep = self.checks.state.jobs.get(&job).map_or(1, |job| job.spec.checkpoint.keep.max(1)) as usize;
        let restores = self.checks.groups.get(&group).and_then(|group| group.restores);
        // Whole ones, or so many more that the wanted level is out of reach for long.
        let whole: Vec<_> = newer.iter().filter(|other| !other.degraded).collect();
        let by_whole = whole.len() >= keep && whole.iter().any(|other| other.proven);
        let by_many =
            seen.degraded && newer.len() >= keep + SURPLUS && newer.iter().any(|other| other.proven);
        let why = match (seen.pinned, restores == Some(seq), by_whole || by_many) {
            (true, ..) => "it is pinned",
            (_, true, _) => "the current attempt restores from it",
            (.., false) => "too few newer ones are whole, or none of them is proven",
            _ => return,
        };
        self.fail("36 what is needed is never retired", format!("{seq} of {job} was retired: {why}"));
    }

    /// The newest sealed one, or the record says what was passed over; never the beginning while there is one (and so no more
    /// work is lost than since the last seal: 38).
    pub(super) fn inv_35_the_newest_sealed_is_restored(
        &mut self,
        id: AttemptId,
        from: Option<CheckpointSeq>,
    ) {
        let passed: Vec<CheckpointSeq> = self.checks.state.attempt(&id).map_or_else(Vec::new, |attempt| {
            attempt.restore.passed_over.iter().map(|(seq, _)| *seq).collect()
        });
        let sealed = self.checks.checkpoints.iter().filter(|((job, _), seen)| {
            *job == id.group.job && seen.attempt.group == id.group && seen.state == CheckpointState::Sealed
        });
        let mut sealed: Vec<_> = sealed.map(|((_, seq), seen)| (seen.recency(*seq), *seq)).collect();
        sealed.sort_unstable();
        let newest = sealed.iter().rev().map(|(_, seq)| *seq).find(|seq| !passed.contains(seq));
        if newest != from || (from.is_none() && !sealed.is_empty()) {
            self.fail(
                "35, 38 the newest sealed checkpoint is restored",
                format!("{id} starts from {from:?}, not {newest:?}"),
            );
        }
    }

    /// A worker has its bytes.
    pub(crate) fn check_restored(&mut self, key: WorkerKey, root: Digest, corrupt: bool) {
        if corrupt {
            self.fail(
                "35 no bytes but the sealed ones",
                format!("{key:?} was given other bytes than {root}"),
            );
        }
    }

    /// An agent deletes what the log has given up, and nothing else.
    pub(crate) fn check_deleted(&mut self, key: &ShardKey, root: Digest) {
        let record = self.checks.state.jobs.get(&key.job()).and_then(|job| job.checkpoints.get(&key.seq));
        let needed = record.is_some_and(|checkpoint| {
            checkpoint.is_sealed()
                && checkpoint.attempt == key.attempt
                && checkpoint.shards.iter().any(|shard| shard.root == root)
        });
        if needed {
            self.fail("36 what is sealed is never deleted", format!("{key:?} was deleted"));
        }
    }
}
