//! The invariants that can be seen in the state alone, one function a number. Tests and simulations call
//! [`ClusterState::check_invariants`] after every command.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AssignmentPhase, Attempt, AttemptPhase, Checkpoint, CheckpointState, ClusterState, Group, Job, JobState,
    NodeCondition, ShardTask,
};

type Broken = Vec<String>;

impl ClusterState {
    /// # Errors
    /// One sentence for each broken invariant, with its number.
    pub fn check_invariants(&self) -> Result<(), Vec<String>> {
        let mut broken = Vec::new();
        self.invariant_20_no_node_gives_more_than_it_has(&mut broken);
        self.invariant_30_every_held_worker_is_answered_for(&mut broken);
        for job in self.jobs.values() {
            invariant_19_nothing_starts_in_an_ending_job(job, &mut broken);
            invariant_37_numbers_are_never_reused(job, &mut broken);
            self.invariant_36_what_is_restored_from_is_kept(job, &mut broken);
            for checkpoint in job.checkpoints.values() {
                self.invariant_24_only_the_current_attempt_has_open_checkpoints(checkpoint, &mut broken);
                invariant_33_sealed_means_complete(checkpoint, &mut broken);
                self.invariant_50_orders_are_for_who_can_carry_them_out(checkpoint, &mut broken);
            }
            for group in &job.groups {
                invariant_21_numbers_only_grow(group, &mut broken);
                invariant_22_one_current_attempt(group, &mut broken);
                invariant_34_sealed_steps_only_grow(job, group, &mut broken);
                invariant_36_the_newest_is_never_retired(job, group, &mut broken);
            }
        }
        if self.index != self.derive_index() {
            broken.push("index: it is not what the jobs say".to_owned());
        }
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }

    fn invariant_20_no_node_gives_more_than_it_has(&self, broken: &mut Broken) {
        for node in self.nodes.values() {
            let (mut cpu, mut memory, mut custom) = (0u64, 0u64, BTreeMap::<&str, u64>::new());
            let mut gpus = BTreeSet::new();
            for (_, _, attempt, seat) in self.held_on(&node.id) {
                cpu = cpu.saturating_add(seat.resources.cpu_millis);
                memory = memory.saturating_add(seat.resources.memory.0);
                for (name, count) in &seat.resources.custom {
                    let sum = custom.entry(name).or_default();
                    *sum = sum.saturating_add(*count);
                }
                for gpu in &seat.gpus {
                    let exists = node.resources.gpus.iter().any(|device| device.index == *gpu);
                    if !exists || !gpus.insert(*gpu) {
                        broken.push(format!(
                            "20: GPU {gpu} of {} is not rank {}'s of {}",
                            node.id, seat.rank, attempt.id
                        ));
                    }
                }
            }
            let over =
                |(name, sum): (&&str, &u64)| node.resources.custom.get(*name).is_none_or(|has| has < sum);
            if cpu > node.resources.cpu_millis || memory > node.resources.memory.0 || custom.iter().any(over)
            {
                broken.push(format!("20: {} holds more than it has", node.id));
            }
        }
    }

    /// So that a seal is refused twice over: the checkpoint is aborted, and its attempt is fenced.
    fn invariant_24_only_the_current_attempt_has_open_checkpoints(
        &self,
        open: &Checkpoint,
        broken: &mut Broken,
    ) {
        if open.state == CheckpointState::Open && !self.is_current(&open.attempt) {
            broken.push(format!("24: {} is open, but {} is not current", open.seq, open.attempt));
        }
    }

    fn invariant_30_every_held_worker_is_answered_for(&self, broken: &mut Broken) {
        for node in self.nodes.values() {
            for (_, _, attempt, seat) in self.held_on(&node.id) {
                if seat.registration != node.registration || node.condition == NodeCondition::Lost {
                    broken.push(format!(
                        "30: nobody answers for rank {} of {} on {}",
                        seat.rank, attempt.id, node.id
                    ));
                }
            }
        }
    }

    /// Or the repair would wait for ever.
    fn invariant_50_orders_are_for_who_can_carry_them_out(
        &self,
        checkpoint: &Checkpoint,
        broken: &mut Broken,
    ) {
        for shard in &checkpoint.shards {
            for order in &shard.orders {
                let (node, rank, task) = (&order.node, shard.rank, order.task.as_str());
                let lives = self.nodes.get(node).is_some_and(|node| node.condition != NodeCondition::Lost);
                let holds = shard.holders.iter().any(|holder| holder.node == *node);
                let alone = shard.orders.iter().filter(|other| other.task == order.task).count() == 1;
                let fits = order.task == ShardTask::Copy || holds;
                if !(checkpoint.is_sealed() && lives && fits && alone) {
                    broken.push(format!("50: {node} cannot {task} rank {rank} of {}", checkpoint.seq));
                }
            }
        }
    }

    fn invariant_36_what_is_restored_from_is_kept(&self, job: &Job, broken: &mut Broken) {
        for attempt in job.groups.iter().filter_map(Group::current) {
            let Some(seq) = attempt.restore.from else { continue };
            let kept = |checkpoint: &Checkpoint| {
                matches!(checkpoint.state, CheckpointState::Sealed | CheckpointState::Quarantined)
            };
            let quarantined_and_trimmed = attempt.phase == AttemptPhase::Stopping;
            if !job.checkpoints.get(&seq).map_or(quarantined_and_trimmed, kept) {
                broken.push(format!("36: {} restores from {seq}, which is not kept", attempt.id));
            }
        }
    }
}

fn invariant_19_nothing_starts_in_an_ending_job(job: &Job, broken: &mut Broken) {
    let live = |attempt: &&Attempt| matches!(attempt.phase, AttemptPhase::Starting | AttemptPhase::Running);
    if job.is_ending() && job.groups.iter().filter_map(Group::current).any(|attempt| live(&attempt)) {
        broken.push(format!("19: {} is ending, but an attempt of it runs", job.id));
    }
    if job.state.is_final() && job.groups.iter().any(|group| group.current().is_some()) {
        broken.push(format!("19: {} is final, but has a current attempt", job.id));
    }
    if job.state == JobState::Succeeded && !job.groups.iter().all(|group| group.done) {
        broken.push(format!("24: {} succeeded, but not all its groups are done", job.id));
    }
}

fn invariant_21_numbers_only_grow(group: &Group, broken: &mut Broken) {
    let ids: Vec<(u64, u64)> =
        group.attempts.iter().map(|attempt| (attempt.id.generation, attempt.id.number)).collect();
    let grows = ids.windows(2).all(|pair| pair[0] < pair[1] && pair[0].1 < pair[1].1);
    if !grows || ids.last().is_some_and(|(_, number)| *number >= group.next_number) {
        broken.push(format!("21: attempt numbers of {} do not only grow: {ids:?}", group.id));
    }
}

fn invariant_22_one_current_attempt(group: &Group, broken: &mut Broken) {
    let older = group.attempts.len().saturating_sub(1);
    if group.attempts.iter().take(older).any(Attempt::is_current) {
        broken.push(format!("22: an older attempt of {} is current", group.id));
    }
    for attempt in &group.attempts {
        if attempt.is_current() == attempt.outcome.is_some() {
            broken.push(format!("22: {} is current and has an outcome, or neither", attempt.id));
        }
        let running = attempt.phase == AttemptPhase::Running;
        if running && attempt.assignments.iter().any(|seat| seat.phase == AssignmentPhase::Assigned) {
            broken.push(format!("22: {} runs, but a rank has not started", attempt.id));
        }
    }
}

fn invariant_33_sealed_means_complete(checkpoint: &Checkpoint, broken: &mut Broken) {
    let ranks = checkpoint.shards.iter().map(|shard| shard.rank);
    let complete = ranks.eq(0..checkpoint.world_size) && checkpoint.manifest_root.is_some();
    if checkpoint.is_sealed() && !complete {
        broken.push(format!("33: {} is sealed without all its parts", checkpoint.seq));
    }
}

/// That they grow in the order of the log is checked where two states can be compared; in one state they differ.
fn invariant_34_sealed_steps_only_grow(job: &Job, group: &Group, broken: &mut Broken) {
    let mut seen = BTreeSet::new();
    let was_sealed =
        |checkpoint: &&Checkpoint| checkpoint.attempt.group == group.id && checkpoint.sealed_at.is_some();
    for checkpoint in job.checkpoints.values().filter(was_sealed) {
        if !seen.insert((checkpoint.attempt, checkpoint.step)) {
            broken.push(format!("34: {} sealed step {} twice", checkpoint.attempt, checkpoint.step));
        }
    }
}

fn invariant_36_the_newest_is_never_retired(job: &Job, group: &Group, broken: &mut Broken) {
    let of_group = |checkpoint: &&Checkpoint| checkpoint.attempt.group == group.id;
    let retired = job.checkpoints.values().filter(of_group).filter(|c| c.state == CheckpointState::Retired);
    let newest_retired = retired.map(Checkpoint::recency).max();
    let newest_kept = job
        .checkpoints
        .values()
        .filter(of_group)
        .filter(|c| matches!(c.state, CheckpointState::Sealed | CheckpointState::Quarantined))
        .map(Checkpoint::recency)
        .max();
    if newest_retired.is_some() && newest_retired > newest_kept {
        broken.push(format!("36: the newest checkpoint of {} was retired", group.id));
    }
}

fn invariant_37_numbers_are_never_reused(job: &Job, broken: &mut Broken) {
    if job.checkpoints.keys().next_back().is_some_and(|seq| seq.0 >= job.next_checkpoint) {
        broken.push(format!("37: a checkpoint of {} has a number that is still to be given", job.id));
    }
}
