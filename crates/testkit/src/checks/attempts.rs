//! Attempts and what they hold: invariants 19 to 22, 24, 28, 30, and the way of every applied command to its observers.

use std::collections::BTreeSet;

use outlast_control::state::{
    AdoptedWorker, Command, Envelope, Event, Incarnation, NodeCondition, Refusal, Registration, Response,
    Rung,
};
use outlast_types::{AttemptId, CheckpointSeq, NodeId};

use crate::world::World;

/// What was seen of a group.
#[derive(Default)]
pub(crate) struct GroupSeen {
    newest: Option<(u64, u64)>,
    pub(crate) current: Option<AttemptId>,
    pub(crate) restores: Option<CheckpointSeq>,
}

impl World {
    /// A command is in the log for good, and this is what it did.
    pub(crate) fn applied_for_good(&mut self, envelope: &Envelope, response: &Response, events: &[Event]) {
        self.inv_28_stale_leaders_cause_no_effect(&envelope.command, response);
        if let Command::SubmitJob { spec, .. } = &envelope.command {
            self.inv_15_a_request_is_one_job(envelope.request.as_ref(), spec, response, events);
        }
        for event in events {
            self.note_event(&envelope.command, event);
        }
    }

    fn note_event(&mut self, command: &Command, event: &Event) {
        match event {
            Event::LeaderChanged { .. } => self.checks.barrier_us = self.now,
            Event::NodeLost { node } => {
                self.cover.nodes_lost += 1;
                if let Command::NodeLost { registration, .. } = command {
                    self.inv_26_nobody_is_lost_within_the_grace(node);
                    self.inv_25_the_lease_of_a_lost_node_is_over(node, *registration);
                }
                self.checks.held.remove(node);
            }
            Event::NodeRegistered { node } => {
                if let Command::RegisterNode(registration) = command {
                    self.inv_30_what_runs_stays_held(registration);
                }
                self.hold_anew(node);
            }
            Event::AttemptStarted { attempt, rung, restore_from } => {
                self.attempt_started(*attempt, *rung, *restore_from);
            }
            Event::AttemptEnded { attempt, .. } => {
                let group = self.checks.groups.entry(attempt.group).or_default();
                if group.current == Some(*attempt) {
                    group.current = None;
                    group.restores = None;
                }
            }
            Event::WorkerReleased { attempt, rank } => {
                for held in self.checks.held.values_mut() {
                    held.remove(&(*attempt, *rank));
                }
            }
            Event::JobChanged { state, .. } if state.is_final() => self.cover.jobs_done += 1,
            Event::JobExpired { job } => {
                self.cover.jobs_expired += 1;
                let job = *job;
                self.checks.groups.retain(|group, _| group.job != job);
                self.checks.checkpoints.retain(|(of, _), _| *of != job);
                self.forget_gangs(|attempt| attempt.group.job == job);
            }
            other => self.note_checkpoint(command, other),
        }
    }

    fn attempt_started(&mut self, id: AttemptId, rung: Rung, restore_from: Option<CheckpointSeq>) {
        match rung {
            Rung::First => {}
            Rung::InPlace => self.cover.in_place += 1,
            Rung::RankMoved => self.cover.rank_moved += 1,
            Rung::Replaced => self.cover.replaced += 1,
        }
        self.inv_19_nothing_starts_after_an_acknowledged_cancel(id);
        self.inv_21_numbers_only_grow(id);
        self.inv_22_one_current_attempt(id);
        self.inv_20_a_gang_is_whole(id);
        self.inv_23_an_exclusive_group_holds_nothing_older(id);
        self.inv_35_the_newest_sealed_is_restored(id, restore_from);
        let group = self.checks.groups.entry(id.group).or_default();
        group.current = Some(id);
        group.restores = restore_from;
        self.hold(id);
    }

    fn inv_19_nothing_starts_after_an_acknowledged_cancel(&mut self, id: AttemptId) {
        if self.checks.cancelled.contains(&id.group.job) {
            self.fail("19 an acknowledged cancel starts nothing", format!("{id} started"));
        }
    }

    fn inv_21_numbers_only_grow(&mut self, id: AttemptId) {
        let group = self.checks.groups.entry(id.group).or_default();
        let number = (id.generation, id.number);
        let before = group.newest.replace(number);
        if before.is_some_and(|before| before >= number) {
            self.fail("21 attempt numbers only grow", format!("{id} came after number {before:?}"));
        }
    }

    fn inv_22_one_current_attempt(&mut self, id: AttemptId) {
        if let Some(other) = self.checks.groups.get(&id.group).and_then(|group| group.current) {
            self.fail("22 one current attempt", format!("{id} started while {other} is current"));
        }
    }

    fn inv_20_a_gang_is_whole(&mut self, id: AttemptId) {
        let state = &self.checks.state;
        let wanted = state.jobs.get(&id.group.job).map(|job| job.spec.shape().1);
        let placed = state.attempt(&id).map(|attempt| {
            let ranks: BTreeSet<u32> = attempt.assignments.iter().map(|seat| seat.rank).collect();
            (attempt.world_size(), ranks.len() as u32)
        });
        if wanted.map(|wanted| (wanted, wanted)) != placed {
            self.fail("20 a gang is placed whole", format!("{id} has {placed:?} ranks of {wanted:?}"));
        }
    }

    /// What the log gives out is not what it waits for: of an exclusive group nothing older may be held.
    fn inv_23_an_exclusive_group_holds_nothing_older(&mut self, id: AttemptId) {
        let state = &self.checks.state;
        let Some(job) = state.jobs.get(&id.group.job).filter(|job| job.spec.exclusive) else { return };
        let Some(group) = job.group(id.group.index) else { return };
        let older = group.attempts.iter().filter(|attempt| attempt.id != id);
        if older.flat_map(|attempt| &attempt.assignments).any(|seat| seat.is_held()) {
            self.fail("23 exclusive", format!("{id} started while something older of its group is held"));
        }
    }

    fn hold(&mut self, id: AttemptId) {
        let Some(attempt) = self.checks.state.attempt(&id) else { return };
        let seats: Vec<_> = attempt.assignments.iter().map(seat_of).collect();
        for (node, rank, cpu, gpus) in seats {
            self.checks.held.entry(node.clone()).or_default().insert((id, rank), (cpu, gpus));
            self.inv_20_no_node_gives_more_than_it_has(&node);
        }
    }

    /// A registration says what is held: bound, taken back, or let go.
    fn hold_anew(&mut self, node: &NodeId) {
        let attempts =
            self.checks.state.jobs.values().flat_map(|job| &job.groups).flat_map(|group| &group.attempts);
        let mut held = std::collections::BTreeMap::new();
        for attempt in attempts {
            for seat in attempt.assignments.iter().filter(|seat| seat.node == *node && seat.is_held()) {
                held.insert((attempt.id, seat.rank), (seat.resources.cpu_millis, seat.gpus.clone()));
            }
        }
        self.checks.held.insert(node.clone(), held);
        self.inv_30_every_held_worker_is_answered_for(node);
    }

    /// What the agent has found running is bound to the new registration in the same entry.
    fn inv_30_what_runs_stays_held(&mut self, new: &Registration) {
        let before = self.checks.held.get(&new.node);
        let lets_go = |worker: &&AdoptedWorker| {
            let key = (worker.attempt, worker.rank);
            let is_held = |attempt: AttemptId, rank: u32| {
                let seat = self.checks.state.attempt(&attempt).and_then(|attempt| attempt.assignment(rank));
                seat.is_some_and(|seat| seat.is_held())
            };
            before.is_some_and(|before| before.contains_key(&key)) && !is_held(key.0, key.1)
        };
        if let Some(worker) = new.adopted.iter().find(lets_go) {
            self.fail("30 what runs stays held", format!("{worker:?} on {} was let go", new.node));
        }
    }

    fn inv_20_no_node_gives_more_than_it_has(&mut self, node: &NodeId) {
        let Some(held) = self.checks.held.get(node) else { return };
        let has = self.scenario.node_resources();
        let cpu: u64 = held.values().map(|(cpu, _)| cpu).sum();
        let gpus: Vec<u32> = held.values().flat_map(|(_, gpus)| gpus.iter().copied()).collect();
        let distinct: BTreeSet<u32> = gpus.iter().copied().collect();
        let exist = distinct.iter().all(|gpu| has.gpus.iter().any(|device| device.index == *gpu));
        if cpu > has.cpu_millis || distinct.len() < gpus.len() || !exist {
            self.fail(
                "20 no node gives more than it has",
                format!("{node} has given {cpu} and GPUs {gpus:?}: {held:?}"),
            );
        }
    }

    /// The ledger of the observers against the state.
    pub(super) fn inv_20_nothing_is_given_twice_in_full(&mut self) {
        let nodes: Vec<NodeId> = self.checks.held.keys().cloned().collect();
        nodes.iter().for_each(|node| self.inv_20_no_node_gives_more_than_it_has(node));
    }

    fn inv_30_every_held_worker_is_answered_for(&mut self, node: &NodeId) {
        let state = &self.checks.state;
        let Some(known) = state.nodes.get(node) else { return };
        let strange = state
            .held_on(node)
            .find(|(_, _, _, seat)| {
                seat.registration != known.registration || known.condition == NodeCondition::Lost
            })
            .map(|(_, _, attempt, seat)| (attempt.id, seat.rank));
        if let Some((attempt, rank)) = strange {
            return self.fail(
                "30 every worker is answered for",
                format!("rank {rank} of {attempt} on {node} is not"),
            );
        }
        // And in the world: what runs there is held by the log, or its agent was told to stop it.
        let a = self.agent_named(node);
        let registration = known.registration;
        let alive =
            self.agents[a].procs.values().filter(|proc| proc.alive).map(|proc| proc.key).collect::<Vec<_>>();
        for key in alive {
            let tracked = self.agents[a].tracked.get(&key).is_some_and(|tracked| tracked.is_alive());
            if self.agents[a].up && self.agents[a].registration == registration && !tracked {
                self.fail(
                    "30 every worker is accounted for",
                    format!("{key:?} runs on {node}, and its agent does not know"),
                );
            }
        }
    }

    fn inv_28_stale_leaders_cause_no_effect(&mut self, command: &Command, response: &Response) {
        let Some(named) = incarnation_of(command) else { return };
        if matches!(response, Response::Refused(refusal) if matches!(refusal, Refusal::Fenced { .. })) {
            self.cover.stale_commands_refused += u64::from(self.checks.state.incarnation != Some(named));
        }
        if !matches!(response, Response::Refused(_)) && self.checks.state.incarnation != Some(named) {
            self.fail("28 stale leaders cause no effect", format!("{command:?} of {named:?} was accepted"));
        }
    }
}

fn seat_of(seat: &outlast_control::state::Assignment) -> (NodeId, u32, u64, Vec<u32>) {
    (seat.node.clone(), seat.rank, seat.resources.cpu_millis, seat.gpus.clone())
}

fn incarnation_of(command: &Command) -> Option<Incarnation> {
    match command {
        Command::NodeLost { incarnation, .. }
        | Command::ExpireJob { incarnation, .. }
        | Command::StartAttempt { incarnation, .. }
        | Command::StopAttempt { incarnation, .. }
        | Command::EndAttempt { incarnation, .. }
        | Command::RequestCheckpoint { incarnation, .. }
        | Command::GiveUp { incarnation, .. }
        | Command::OrderShards { incarnation, .. }
        | Command::SetInterval { incarnation, .. }
        | Command::ProveCheckpoint { incarnation, .. }
        | Command::StoreCheckpoint { incarnation, .. } => Some(*incarnation),
        _ => None,
    }
}
