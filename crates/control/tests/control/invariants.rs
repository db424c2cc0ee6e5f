//! Random histories: actions become commands, agents and leader act on what the log says or on something older, and
//! after every command all invariants are checked (`World::send` does). A failing history shrinks to a short one.

use std::collections::BTreeMap;

use outlast_control::state::{
    AttemptPhase, Checkpoint, ClusterState, Command, Incarnation, Observation, Response, RestoreDecision,
    Rung, ShardTask, decode_state, encode_state,
};
use outlast_types::{AttemptId, Cause, CheckpointSeq, CoordinatorId, DiskId, ExitStatus, GroupId, JobId};
use proptest::prelude::*;
use serde_json::json;

use crate::world::{World, adopted, exit, job_spec, node, registration, root};

const NODES: u64 = 4;

#[derive(Clone, Debug)]
enum Action {
    Submit {
        kind: u8,
        workers: u8,
        exclusive: bool,
        gpus: u8,
    },
    Cancel {
        job: u64,
    },
    /// A planner pass, carried out.
    Plan,
    Wait {
        ms: u64,
    },
    /// An agent does the next thing for one of its workers.
    Worker {
        node: u64,
        which: usize,
        status: i8,
    },
    /// An agent repeats, or says something about an attempt that it does not have.
    Stray {
        node: u64,
        job: u64,
        number: u64,
        rank: u8,
    },
    Restart {
        node: u64,
        keep: u8,
        new_disk: bool,
    },
    Lose {
        node: u64,
    },
    Node {
        node: u64,
        what: u8,
    },
    Open {
        job: u64,
        step: u64,
        stale: bool,
    },
    Receive {
        job: u64,
        which: usize,
        holder: u64,
        second: u64,
    },
    /// A seal by somebody who does not ask first.
    BareSeal {
        job: u64,
        which: usize,
        holder: u64,
        second: u64,
    },
    Checkpoint {
        job: u64,
        which: usize,
        what: u8,
    },
    /// An order, its end, or what a node says of a shard; see `Sim::shard`.
    Shard {
        job: u64,
        which: usize,
        node: u64,
        rank: u32,
        what: u8,
    },
    Leader {
        coordinator: u64,
    },
    StaleLeader {
        job: u64,
        node: u64,
    },
    /// The cluster goes on as a new one, with a leader of its own.
    Recover,
    BareStart {
        job: u64,
        previous: u64,
        nodes: (u64, u64),
    },
    Stop {
        job: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let n = || 1..=NODES;
    let j = || 1u64..=4;
    prop_oneof![
        2 => (0u8..3, 1u8..4, any::<bool>(), 0u8..2)
            .prop_map(|(kind, workers, exclusive, gpus)| Action::Submit { kind, workers, exclusive, gpus }),
        1 => j().prop_map(|job| Action::Cancel { job }),
        8 => Just(Action::Plan),
        3 => prop_oneof![Just(100u64), Just(1_000), Just(31_000), Just(61_000), Just(800_000_000)]
            .prop_map(|ms| Action::Wait { ms }),
        14 => (n(), 0usize..8, -2i8..2).prop_map(|(node, which, status)| Action::Worker { node, which, status }),
        1 => (n(), j(), 0u64..4, 0u8..3).prop_map(|(node, job, number, rank)| Action::Stray { node, job, number, rank }),
        2 => (n(), any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(node, keep, new_disk)| Action::Restart { node, keep, new_disk }),
        1 => n().prop_map(|node| Action::Lose { node }),
        1 => (n(), 0u8..4).prop_map(|(node, what)| Action::Node { node, what }),
        4 => (j(), 0u64..50, prop::bool::weighted(0.1)).prop_map(|(job, step, stale)| Action::Open { job, step, stale }),
        4 => (j(), 0usize..4, n(), n())
            .prop_map(|(job, which, holder, second)| Action::Receive { job, which, holder, second }),
        3 => (j(), 0usize..9, n(), n())
            .prop_map(|(job, which, holder, second)| Action::BareSeal { job, which, holder, second }),
        2 => (j(), 0usize..9, 0u8..5).prop_map(|(job, which, what)| Action::Checkpoint { job, which, what }),
        5 => (j(), 0usize..4, n(), 0u32..3, 0u8..8)
            .prop_map(|(job, which, node, rank, what)| Action::Shard { job, which, node, rank, what }),
        1 => (1u64..4).prop_map(|coordinator| Action::Leader { coordinator }),
        1 => (j(), n()).prop_map(|(job, node)| Action::StaleLeader { job, node }),
        1 => Just(Action::Recover),
        1 => (j(), 0u64..4, (n(), n())).prop_map(|(job, previous, nodes)| Action::BareStart { job, previous, nodes }),
        1 => j().prop_map(|job| Action::Stop { job }),
    ]
}

/// The world with what only a simulation knows.
struct Sim {
    world: World,
    runs: BTreeMap<u64, u64>,
    submitted: u64,
}

impl Sim {
    fn new() -> Self {
        Self { world: World::new(NODES), runs: BTreeMap::new(), submitted: 0 }
    }

    fn group(job: u64) -> GroupId {
        GroupId { job: JobId(job), index: 0 }
    }

    fn current(&self, job: u64) -> Option<AttemptId> {
        self.world.state.group(&Self::group(job))?.current().map(|attempt| attempt.id)
    }

    fn seq(&self, job: u64, which: usize) -> Option<CheckpointSeq> {
        self.world.state.jobs.get(&JobId(job))?.checkpoints.keys().nth_back(which).copied()
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Submit { kind, workers, exclusive, gpus } => {
                self.submit(*kind, *workers, *exclusive, *gpus)
            }
            Action::Cancel { job } => self.send(Command::CancelJob { job: JobId(*job), reason: None }),
            Action::Plan => {
                self.world.pass();
            }
            Action::Wait { ms } => self.world.wait(*ms),
            Action::Worker { node, which, status } => self.worker(*node, *which, *status),
            Action::Stray { node: n, job, number, rank } => {
                let attempt = AttemptId { group: Self::group(*job), generation: 1, number: *number };
                let observation =
                    Observation::Exited { attempt, rank: u32::from(*rank), exit: exit(ExitStatus::Code(1)) };
                let record = &self.world.state.nodes[&node(*n)];
                // An older registration, a repeat, a gap: whatever it is, it must do no harm.
                let (registration, first) = (record.registration, (*number).max(record.observed));
                let observations = vec![observation];
                self.send(Command::Observe { node: node(*n), registration, first, observations });
            }
            Action::Restart { node, keep, new_disk } => self.restart(*node, *keep, *new_disk),
            Action::Lose { node: n } => {
                let registration = self.world.state.nodes[&node(*n)].registration;
                let incarnation = self.world.incarnation();
                self.send(Command::NodeLost { node: node(*n), registration, incarnation });
                self.world.seen.forget_node(&node(*n));
            }
            Action::Node { node: n, what } => {
                let node = node(*n);
                self.send(match what {
                    0 => Command::CordonNode { node },
                    1 => Command::DrainNode { node },
                    2 => Command::QuarantineNode { node, reason: "test".to_owned(), incarnation: None },
                    _ => Command::UncordonNode { node },
                });
            }
            Action::Open { job, step, stale } => self.open(*job, *step, *stale),
            Action::Receive { job, which, holder, second } => {
                if let (Some(seq), Some(attempt)) = (self.seq(*job, *which), self.current(*job)) {
                    self.world.receive(attempt, seq, &[*holder, *second]);
                }
            }
            Action::BareSeal { job, which, holder, second } => {
                let Some(seq) = self.seq(*job, *which) else { return };
                let of = self.world.state.jobs[&JobId(*job)].checkpoints[&seq].attempt;
                if self.world.state.attempt(&of).is_some() {
                    let seal = self.world.seal_of(of, seq, &[*holder, *second]);
                    self.send(seal);
                }
            }
            Action::Checkpoint { job, which, what } => {
                let (Some(seq), job, reason) = (self.seq(*job, *which), JobId(*job), "test".to_owned())
                else {
                    return;
                };
                self.send(match what {
                    0 => Command::RetireCheckpoint { job, seq, incarnation: None },
                    1 => Command::AbortCheckpoint { job, seq, reason, incarnation: None },
                    2 => Command::QuarantineCheckpoint { job, seq, reason, incarnation: None },
                    3 => Command::PinCheckpoint { job, seq, pinned: true },
                    _ => Command::PinCheckpoint { job, seq, pinned: false },
                });
            }
            Action::Shard { job, which, node: n, rank, what } => self.shard(*job, *which, *n, *rank, *what),
            Action::Leader { coordinator } => {
                self.send(Command::Barrier { coordinator: CoordinatorId(*coordinator) })
            }
            Action::StaleLeader { job, node: n } => self.stale_leader(*job, *n),
            Action::Recover => self.world.recover(),
            Action::BareStart { job, previous, nodes } => self.bare_start(*job, *previous, *nodes),
            Action::Stop { job } => {
                let Some(attempt) = self.current(*job) else { return };
                let (cause, incarnation) = (Cause::Hang { rank: 0, silent_ms: 1 }, self.world.incarnation());
                self.send(Command::StopAttempt { attempt, cause, graceful: false, incarnation });
            }
        }
    }

    fn send(&mut self, command: Command) {
        self.world.send(command);
    }

    /// Orders, and what agents say of shards: true or not, late or not, it must do no harm.
    fn shard(&mut self, job: u64, which: usize, n: u64, rank: u32, what: u8) {
        let Some(seq) = self.seq(job, which) else { return };
        let (job, incarnation) = (JobId(job), self.world.incarnation());
        let checkpoint = &self.world.state.jobs[&job].checkpoints[&seq];
        let (attempt, reason) = (checkpoint.attempt, "test".to_owned());
        let root = checkpoint.shard(rank).map_or(root(0), |shard| shard.root);
        let order =
            |task| Command::OrderShards { job, seq, task, orders: vec![(rank, node(n))], incarnation };
        let observation = match what {
            0 => return self.send(order(ShardTask::Copy)),
            1 => return self.send(order(ShardTask::Prove)),
            2 => return self.send(order(ShardTask::Store)),
            3 => return self.send(Command::ProveCheckpoint { job, seq, incarnation }),
            4 => return self.send(Command::StoreCheckpoint { job, seq, incarnation }),
            5 => Observation::ShardHeld { attempt, seq, rank, root },
            6 => Observation::ShardLost { attempt, seq, rank, root, reason },
            _ => Observation::CopyFailed { attempt, seq, rank, reason },
        };
        let record = &self.world.state.nodes[&node(n)];
        let (registration, first) = (record.registration, record.observed + 1);
        self.send(Command::Observe { node: node(n), registration, first, observations: vec![observation] });
    }

    fn submit(&mut self, kind: u8, workers: u8, exclusive: bool, gpus: u8) {
        self.submitted += 1;
        let kind = ["training", "service", "batch"][usize::from(kind)];
        let change = json!({
            "kind": kind, "workers": workers, "exclusive": exclusive, "retention": "1h",
            "resources": {"cpus": 1, "memory": "1GiB", "gpus": gpus},
        });
        let spec = Box::new(job_spec(&format!("job{}", self.submitted % 3), &change));
        self.send(Command::SubmitJob { spec, bundle: None });
    }

    /// The next thing in a worker's life, by what the state says of it.
    fn worker(&mut self, n: u64, which: usize, status: i8) {
        use outlast_control::state::AssignmentPhase::{Assigned, Exited, Ready, Started};
        let held: Vec<_> =
            self.world.state.held_on(&node(n)).map(|(_, _, a, seat)| (a.id, a.phase, seat.clone())).collect();
        let Some((attempt, phase, seat)) = held.get(which % held.len().max(1)).cloned() else { return };
        let rank = seat.rank;
        let stopping = !matches!(phase, AttemptPhase::Starting | AttemptPhase::Running);
        let observation = match (seat.phase, status) {
            (Exited, _) => Observation::Released { attempt, rank },
            (Assigned, _) if stopping => Observation::Released { attempt, rank },
            (Assigned, -2) => Observation::StartFailed { attempt, rank, reason: "test".to_owned() },
            (Assigned, _) => Observation::Started { attempt, rank },
            (Started | Ready, _) if stopping => {
                Observation::Exited { attempt, rank, exit: exit(ExitStatus::Signal(9)) }
            }
            (_, 0) => Observation::Exited { attempt, rank, exit: exit(ExitStatus::Code(0)) },
            (_, 1) => Observation::Ready { attempt, rank },
            (_, -1) => match self.world.state.attempt(&attempt).and_then(|attempt| attempt.restore.from) {
                Some(seq) => Observation::Restored { attempt, rank, seq },
                None => Observation::Ready { attempt, rank },
            },
            _ => Observation::Exited { attempt, rank, exit: exit(ExitStatus::Code(1)) },
        };
        if self.world.state.nodes[&node(n)].condition == outlast_control::state::NodeCondition::Registered {
            self.world.observe(n, observation);
        }
    }

    /// An agent comes back; some of its workers live, some left an exit record. Those of exclusive jobs do not outlive
    /// a lost lease: their keepers saw to that.
    fn restart(&mut self, n: u64, keep: u8, new_disk: bool) {
        let is_live = |this: &Self| {
            this.world.state.nodes[&node(n)].condition == outlast_control::state::NodeCondition::Registered
        };
        // Under another folder's id it comes back only when the old registration is lost.
        if new_disk && is_live(self) {
            self.world.lose(n);
        }
        let run = self.runs.entry(n).or_insert(1);
        *run += 1;
        let mut again = registration(n, *run);
        let old = self.world.state.nodes[&node(n)].clone();
        again.disk = if new_disk { DiskId::new(format!("disk-{n}-{run}")).expect("valid") } else { old.disk };
        let lost = old.condition == outlast_control::state::NodeCondition::Lost;
        let groups =
            self.world.state.jobs.values().flat_map(|job| job.groups.iter().map(move |group| (job, group)));
        let attempts =
            groups.flat_map(|(job, group)| group.attempts.iter().map(move |attempt| (job, attempt)));
        let seats = attempts.flat_map(|(job, a)| a.assignments.iter().map(move |seat| (job, a.id, seat)));
        for (bit, (job, attempt, seat)) in seats.filter(|(_, _, seat)| seat.node == node(n)).enumerate() {
            let dead = seat.started_at.is_none() || (lost && job.spec.exclusive);
            match (keep >> (bit % 8)) & 1 {
                1 if !dead => again.adopted.push(adopted(attempt, seat.rank)),
                _ if bit % 3 == 0 => {
                    again.exited.push((attempt, seat.rank, exit(ExitStatus::Code(bit as i32 % 2))))
                }
                _ => {}
            }
        }
        self.world.register(again);
    }

    fn open(&mut self, job: u64, step: u64, stale: bool) {
        let Some(current) = self.current(job) else { return };
        let number = if stale { current.number.saturating_sub(1) } else { current.number };
        self.send(Command::OpenCheckpoint { attempt: AttemptId { number, ..current }, step, in_turn: false });
    }

    fn stale_leader(&mut self, job: u64, n: u64) {
        let newest = self.world.incarnation();
        let incarnation = Incarnation { index: newest.index - 1, coordinator: newest.coordinator };
        let registration = self.world.state.nodes[&node(n)].registration;
        let before = self.world.state.clone();
        self.send(Command::NodeLost { node: node(n), registration, incarnation });
        self.send(Command::GiveUp { group: Self::group(job), reason: String::new(), incarnation });
        self.send(Command::ExpireJob { job: JobId(job), incarnation });
        // Invariant 28.
        assert!(before.nodes == self.world.state.nodes && before.jobs == self.world.state.jobs);
    }

    fn bare_start(&mut self, job: u64, previous: u64, (first, second): (u64, u64)) {
        let place = |(rank, n): (u32, u64)| outlast_control::state::Placed {
            rank,
            node: node(n),
            registration: self.world.state.nodes[&node(n)].registration,
            gpus: Vec::new(),
        };
        let from = self.world.state.newest_sealed(&Self::group(job)).map(|checkpoint| checkpoint.seq);
        let command = Command::StartAttempt {
            group: Self::group(job),
            previous,
            rung: Rung::Replaced,
            placed: [(0, first), (1, second)].into_iter().map(place).collect(),
            restore: RestoreDecision { from, passed_over: Vec::new() },
            incarnation: self.world.incarnation(),
        };
        self.send(command);
    }
}

/// What may be said only of two states, one after the other.
fn check_step(before: &ClusterState, after: &ClusterState) {
    for (id, old) in &before.jobs {
        let Some(new) = after.jobs.get(id) else {
            assert!(old.state.is_final(), "14: {id} left without being finished");
            continue;
        };
        assert_eq!(old.spec, new.spec, "14: the spec of {id} changed");
        assert!(!old.state.is_final() || old.state == new.state, "{id} came back from {:?}", old.state);
        for (old_group, new_group) in old.groups.iter().zip(&new.groups) {
            let number = |group: &outlast_control::state::Group| group.next_number;
            assert!(number(old_group) <= number(new_group), "21: numbers of {} go back", old_group.id);
            let started = number(old_group) < number(new_group);
            assert!(!(started && old.is_ending()), "19: {} started after its end was decided", new_group.id);
            if started && new.spec.exclusive {
                let held = |attempt: &outlast_control::state::Attempt| {
                    attempt.assignments.iter().any(|s| s.is_held())
                };
                let holding = new_group.attempts.iter().filter(|attempt| held(attempt)).count();
                assert!(holding <= 1, "23: two attempts of exclusive {} hold something", new_group.id);
            }
            if started {
                let newest = after.newest_sealed(&new_group.id).map(|checkpoint| checkpoint.seq);
                let decided = new_group.newest().map(|attempt| attempt.restore.clone()).unwrap_or_default();
                let explained =
                    newest.is_none_or(|newest| decided.passed_over.iter().any(|(seq, _)| *seq == newest));
                assert!(
                    decided.from == newest || explained,
                    "35: {} starts from {:?}",
                    new_group.id,
                    decided.from
                );
                assert!(
                    decided.from.is_some() || newest.is_none(),
                    "35: {} starts from the beginning",
                    new_group.id
                );
            }
        }
        check_checkpoints(old, new);
    }
}

fn check_checkpoints(old: &outlast_control::state::Job, new: &outlast_control::state::Job) {
    assert!(old.next_checkpoint <= new.next_checkpoint, "37: checkpoint numbers of {} go back", old.id);
    for (seq, after) in &new.checkpoints {
        let before = old.checkpoints.get(seq);
        let newly_sealed = after.is_sealed() && !before.is_some_and(Checkpoint::is_sealed);
        if !newly_sealed {
            continue;
        }
        assert!(
            before.is_some_and(|before| before.sealed_at.is_none()),
            "37: {seq} of {} was revived",
            old.id
        );
        let group =
            old.group(after.attempt.group.index).and_then(|group| group.current()).map(|attempt| attempt.id);
        assert_eq!(group, Some(after.attempt), "24: {seq} of {} was sealed by another attempt", old.id);
        let mut same =
            old.checkpoints.values().filter(|other| other.attempt == after.attempt && other.is_sealed());
        assert!(same.all(|other| other.step < after.step), "34: {seq} of {} goes back", old.id);
    }
}

/// Debug builds do this in a few seconds; a nightly run may ask for more with PROPTEST_CASES.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::with_cases(96) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn invariants_14_19_to_24_28_30_33_to_37_hold_after_every_command(
        actions in prop::collection::vec(action(), 1..150),
    ) {
        let mut sim = Sim::new();
        for action in &actions {
            let before = sim.world.state.clone();
            sim.act(action);
            // A planner pass is several commands: what holds for each holds for all of them together.
            check_step(&before, &sim.world.state);
        }
    }

    #[test]
    fn invariant_13_replaying_the_log_gives_an_equal_state_and_so_do_its_bytes(
        actions in prop::collection::vec(action(), 1..100),
    ) {
        let mut sim = Sim::new();
        for action in &actions {
            sim.act(action);
        }
        let mut replayed = ClusterState::new();
        for (index, envelope) in &sim.world.log {
            replayed.apply(*index, envelope);
        }
        prop_assert!(replayed == sim.world.state);
        let decoded = decode_state(&encode_state(&replayed)).expect("decodes");
        prop_assert!(decoded == replayed, "the state, its derived index with it, survives its bytes");
        prop_assert_eq!(encode_state(&decoded), encode_state(&replayed));
    }

    /// Invariants 44 and 46, without faults from here on: whatever happened, a job that can run comes to run.
    #[test]
    fn invariants_44_46_after_the_faults_every_job_runs_or_ends(
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let mut sim = Sim::new();
        for action in &actions {
            sim.act(action);
        }
        heal(&mut sim);
        let plan = sim.world.look();
        for job in sim.world.state.jobs.values().filter(|job| !job.state.is_final()) {
            for group in job.groups.iter().filter(|group| !group.done) {
                let phase = group.current().map(|attempt| attempt.phase);
                let why = plan.waiting.get(&group.id).cloned().unwrap_or_default();
                let excused = why.contains("free for rank") || why.contains("quarantine them");
                prop_assert!(phase == Some(AttemptPhase::Running) || excused, "{} is {phase:?}: {why}", group.id);
            }
        }
    }
}

/// All nodes are back and take work, all agents do what they are told, and time passes.
fn heal(sim: &mut Sim) {
    for n in 1..=NODES {
        let lost = sim.world.state.nodes[&node(n)].condition == outlast_control::state::NodeCondition::Lost;
        if lost {
            sim.restart(n, 0, false);
        }
        sim.send(Command::UncordonNode { node: node(n) });
    }
    for _ in 0..40 {
        sim.world.pass();
        for n in 1..=NODES {
            let held = sim.world.state.held_on(&node(n)).count();
            for which in 0..held {
                obey(sim, n, which);
            }
        }
        sim.world.wait(10_000);
    }
}

fn obey(sim: &mut Sim, n: u64, which: usize) {
    let held: Vec<_> = sim
        .world
        .state
        .held_on(&node(n))
        .map(|(_, _, a, seat)| (a.id, a.phase, seat.rank, seat.phase))
        .collect();
    let Some((attempt, phase, rank, seat)) = held.get(which).copied() else { return };
    let running = matches!(phase, AttemptPhase::Starting | AttemptPhase::Running);
    match seat {
        outlast_control::state::AssignmentPhase::Assigned if running => {
            sim.world.observe(n, Observation::Started { attempt, rank });
        }
        outlast_control::state::AssignmentPhase::Exited => {
            sim.world.observe(n, Observation::Released { attempt, rank })
        }
        _ if !running => sim.world.observe(n, Observation::Released { attempt, rank }),
        _ => {}
    }
}

#[test]
fn an_answer_names_what_it_made() {
    let mut sim = Sim::new();
    let spec = Box::new(job_spec("a", &json!({})));
    assert_eq!(sim.world.send(Command::SubmitJob { spec, bundle: None }), Response::JobSubmitted(JobId(1)));
}
