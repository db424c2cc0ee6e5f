//! Workers: how the agent starts, adopts, stops and releases them (`agent/src/agent_loop/workers.rs`, `worker/start.rs`).

use outlast_control::state::{AdoptedWorker, ExitRecord, NodeFeatures, Observation, Registration};
use outlast_types::{BootTime, ExitStatus, Millis, WallTime};

use crate::agent::Tracked;
use crate::assigned::{Assigned, WorkerKey};
use crate::event::{AgentTimer, Host, What};
use crate::model_bug::ModelBug;
use crate::process::{KILL_BUDGET_MS, KILL_US, Proc, STEP_US};
use crate::reconcile::{Action, Life};
use crate::world::World;

const SPAWN_US: (u64, u64) = (5_000, 40_000);
const PERMIT_AGAIN_US: u64 = 100_000;
const WAIT_US: u64 = 50_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartPhase {
    Folder,
    Restore { until_us: u64 },
    Rendezvous,
    Permit,
    Spawn { deadline: BootTime },
}

impl World {
    pub(crate) fn act(&mut self, a: usize, action: Action) {
        match action {
            Action::Start(assigned) => self.start_worker(a, *assigned),
            Action::Stop { key, grace_ms, .. } => self.stop_worker(a, key, grace_ms),
            Action::Forswear(key) => {
                self.cover.forsworn += 1;
                self.agents[a].tracked.insert(key, Tracked::never_was());
                self.observe_released(a, key);
            }
            Action::Disown(key) => self.disown(a, key),
            Action::Update(assigned) => {
                if let Some(tracked) = self.agents[a].tracked.get_mut(&assigned.key) {
                    tracked.assigned = Some(*assigned);
                }
            }
        }
    }

    fn observe_released(&mut self, a: usize, key: WorkerKey) {
        self.agents[a].observe(Observation::Released { attempt: key.attempt, rank: key.rank });
    }

    fn disown(&mut self, a: usize, key: WorkerKey) {
        self.cover.disowned += 1;
        let exit = self.exit_record(ExitStatus::KeeperLost);
        let agent = &mut self.agents[a];
        agent.tracked.insert(key, Tracked::never_was());
        agent.observe(Observation::Exited { attempt: key.attempt, rank: key.rank, exit });
        self.observe_released(a, key);
    }

    fn exit_record(&self, status: ExitStatus) -> ExitRecord {
        ExitRecord { status, at: WallTime(self.now / 1_000), detail: String::new(), last_lines: Vec::new() }
    }

    fn start_worker(&mut self, a: usize, assigned: Assigned) {
        let key = assigned.key;
        let agent = &mut self.agents[a];
        agent.folder.workers.insert(key, (assigned.clone(), agent.boot));
        let tracked = Tracked {
            life: Life::Starting,
            assigned: Some(assigned),
            start: Some(StartPhase::Folder),
            ..Tracked::never_was()
        };
        agent.tracked.insert(key, tracked);
        let pause = self.rng.within(1_000, 10_000);
        self.after(Host::Agent(a), pause, What::Agent(AgentTimer::Start(key)));
    }

    /// The next thing on a worker's way to its start.
    pub(crate) fn start_step(&mut self, a: usize, key: WorkerKey) {
        let now = self.now;
        let Some(tracked) = self.agents[a].tracked.get(&key).filter(|tracked| tracked.is_alive()) else {
            return;
        };
        let (Some(phase), Some(assigned)) = (tracked.start, tracked.assigned.clone()) else { return };
        let is_wanted = tracked.life == Life::Starting;
        if !is_wanted && !matches!(phase, StartPhase::Spawn { .. }) {
            return self.ended(a, key, None);
        }
        match phase {
            StartPhase::Folder => {
                if key.rank == 0 {
                    let address = format!("{}:1", self.agents[a].node);
                    self.agents[a].observe(Observation::Rendezvous { attempt: key.attempt, address });
                }
                let until_us = now + RESTORE_FOR_US;
                let next = if assigned.restore.is_some() {
                    StartPhase::Restore { until_us }
                } else {
                    StartPhase::Rendezvous
                };
                self.go_on_starting(a, key, next, 0);
            }
            StartPhase::Restore { until_us } => self.restore_step(a, key, until_us),
            StartPhase::Rendezvous => {
                let met = key.rank == 0 || assigned.has_rendezvous;
                let next = if met { StartPhase::Permit } else { StartPhase::Rendezvous };
                self.go_on_starting(a, key, next, if met { 0 } else { WAIT_US });
            }
            StartPhase::Permit => {
                let agent = &self.agents[a];
                let may = !agent.newest.supersedes(&key.attempt)
                    && agent.desired.as_ref().is_some_and(|desired| agent.may_start(now, desired.index));
                match agent.heart.deadline().filter(|_| may) {
                    Some(deadline) => {
                        let took = self.rng.within(SPAWN_US.0, SPAWN_US.1);
                        self.go_on_starting(a, key, StartPhase::Spawn { deadline }, took);
                    }
                    None => self.go_on_starting(a, key, StartPhase::Permit, PERMIT_AGAIN_US),
                }
            }
            StartPhase::Spawn { deadline } => self.spawn(a, &assigned, deadline),
        }
    }

    pub(crate) fn go_on_starting(&mut self, a: usize, key: WorkerKey, phase: StartPhase, pause: u64) {
        if let Some(tracked) = self.agents[a].tracked.get_mut(&key) {
            tracked.start = Some(phase);
            self.after(Host::Agent(a), pause, What::Agent(AgentTimer::Start(key)));
        }
    }

    fn spawn(&mut self, a: usize, assigned: &Assigned, deadline: BootTime) {
        let key = assigned.key;
        // The keeper looks before it starts anything: its agent may have stood still since it read the lease.
        if assigned.exclusive && self.agents[a].clock.boot(self.now) >= deadline.minus(KILL_BUDGET_MS) {
            let exit = self.exit_record(ExitStatus::NotStarted);
            let (attempt, rank) = (key.attempt, key.rank);
            self.agents[a].observe(Observation::Exited { attempt, rank, exit: exit.clone() });
            return self.ended(a, key, Some(exit));
        }
        let id = self.id();
        let restored = assigned.restore.as_ref().map_or(0, |from| self.step_of(from.root));
        let proc = Proc {
            key,
            exclusive: assigned.exclusive,
            kind: assigned.kind,
            world_size: assigned.world_size,
            deadline: assigned.exclusive.then_some(deadline),
            alive: true,
            exit: None,
            is_fenced: false,
            being_killed: false,
            step: restored,
            steps: assigned.steps,
            every: assigned.every_steps,
            saved_step: restored,
            saving: false,
            hung: false,
            reports: true,
        };
        self.trace(|| format!("{key:?} starts on node {a} at step {restored}"));
        self.cover.workers_started += 1;
        self.agents[a].procs.insert(id, proc);
        self.check_started(a, key, assigned);
        self.join_gang(key, restored);
        let pause = self.rng.within(STEP_US.0, STEP_US.1);
        self.on_machine(a, pause, AgentTimer::Step(id));
        if assigned.exclusive {
            let fence = self.agents[a].clock.when(deadline.minus(KILL_BUDGET_MS));
            self.on_machine(a, fence.saturating_sub(self.now), AgentTimer::Fence(id));
        }
        let agent = &mut self.agents[a];
        let Some(tracked) = agent.tracked.get_mut(&key) else { return };
        tracked.proc = Some(id);
        tracked.start = None;
        let stopping = match tracked.life {
            Life::Stopping { grace_ms } => Some(grace_ms),
            _ => {
                tracked.life = Life::Running;
                None
            }
        };
        agent.observe(Observation::Started { attempt: key.attempt, rank: key.rank });
        if let Some(grace_ms) = stopping {
            self.order_stop(a, id, grace_ms);
        }
    }

    pub(crate) fn stop_worker(&mut self, a: usize, key: WorkerKey, grace_ms: Millis) {
        let Some(tracked) = self.agents[a].tracked.get_mut(&key).filter(|tracked| tracked.is_alive()) else {
            return;
        };
        tracked.life = Life::Stopping { grace_ms };
        let (proc, starts) = (tracked.proc, tracked.start);
        if let Some(id) = proc {
            self.order_stop(a, id, grace_ms);
            if self.model_bug == Some(ModelBug::ReleaseEarly) {
                self.observe_released(a, key);
            }
        } else if starts.is_some_and(|phase| !matches!(phase, StartPhase::Spawn { .. })) {
            self.after(Host::Agent(a), 1_000, What::Agent(AgentTimer::Start(key)));
        }
    }

    fn order_stop(&mut self, a: usize, id: u64, grace_ms: Millis) {
        let Some(proc) = self.agents[a].procs.get_mut(&id).filter(|proc| proc.alive) else { return };
        if grace_ms > 0 {
            // Most end soon; some only when they are killed.
            let slow = proc.hung || self.rng.per_mille(100);
            let took = if slow { grace_ms * 1_000 } else { self.rng.within(20_000, grace_ms * 200) };
            self.on_machine(a, took, AgentTimer::Killed(id));
        } else {
            proc.being_killed = true;
            let took = self.rng.within(KILL_US.0, KILL_US.1);
            self.on_machine(a, took, AgentTimer::Killed(id));
        }
    }

    /// The agent hears of it, at once or when it adopts.
    pub(crate) fn handle_exit(&mut self, a: usize, key: WorkerKey, id: u64) {
        let status =
            self.agents[a].procs.get(&id).and_then(|proc| proc.exit).unwrap_or(ExitStatus::KeeperLost);
        let Some(tracked) = self.agents[a].tracked.get(&key).filter(|tracked| tracked.is_alive()) else {
            return;
        };
        if tracked.proc != Some(id) {
            return;
        }
        let status = if tracked.is_fenced { ExitStatus::Fenced } else { status };
        let exit = self.exit_record(status);
        self.agents[a].observe(Observation::Exited {
            attempt: key.attempt,
            rank: key.rank,
            exit: exit.clone(),
        });
        self.ended(a, key, Some(exit));
    }

    /// Nothing of it is alive, and it will never start.
    pub(crate) fn ended(&mut self, a: usize, key: WorkerKey, exit: Option<ExitRecord>) {
        let Some(tracked) = self.agents[a].tracked.get_mut(&key).filter(|tracked| tracked.is_alive()) else {
            return;
        };
        tracked.life = Life::Over;
        tracked.exit = exit;
        tracked.start = None;
        self.observe_released(a, key);
    }

    /// The log has its release: its files may go.
    pub(crate) fn release_applied(&mut self, a: usize, key: WorkerKey) {
        let agent = &mut self.agents[a];
        if let Some(tracked) = agent.tracked.get_mut(&key) {
            tracked.is_applied = true;
        }
        if agent.tracked.get(&key).is_none_or(|tracked| !tracked.is_alive()) {
            agent.folder.workers.remove(&key);
            agent.procs.retain(|_, proc| proc.alive || proc.key != key);
        }
    }

    /// At the agent's start: what its predecessor left (A6).
    pub(crate) fn adopt_workers(&mut self, a: usize) {
        let forgets = self.model_bug == Some(ModelBug::ForgetToAdopt);
        let found: Vec<WorkerKey> = self.agents[a].folder.workers.keys().copied().collect();
        for key in found {
            let agent = &mut self.agents[a];
            let (assigned, boot) = agent.folder.workers[&key].clone();
            let proc =
                agent.procs.iter().find(|(_, proc)| proc.key == key).map(|(id, proc)| (*id, proc.alive));
            let Some((id, alive)) = proc.filter(|_| boot == agent.boot && !forgets) else {
                // Nothing survives a reboot, and what has no keeper never began.
                agent.folder.workers.remove(&key);
                continue;
            };
            self.cover.adopted += 1;
            agent.newest.saw(key.attempt);
            let tracked = Tracked {
                life: Life::Running,
                assigned: Some(assigned),
                proc: Some(id),
                is_adopted: true,
                ..Tracked::never_was()
            };
            agent.tracked.insert(key, tracked);
            if key.rank == 0 && alive {
                let address = format!("{}:1", agent.node);
                agent.observe(Observation::Rendezvous { attempt: key.attempt, address });
            }
            self.announce_again(a, key);
            if !alive {
                self.handle_exit(a, key, id);
            }
        }
    }

    pub(crate) fn registration_message(&self, a: usize) -> (Registration, Vec<WorkerKey>) {
        let agent = &self.agents[a];
        let adopted = agent.tracked.iter().filter(|(_, tracked)| tracked.has_processes());
        let over: Vec<_> =
            agent.tracked.iter().filter(|(_, tracked)| !tracked.is_alive() && !tracked.is_applied).collect();
        let exited =
            over.iter().filter_map(|(key, tracked)| Some((key.attempt, key.rank, tracked.exit.clone()?)));
        let registration = Registration {
            node: agent.node.clone(),
            registration: agent.registration,
            serial: agent.folder.registrations,
            boot: agent.boot_id(),
            disk: agent.disk_id(),
            address: format!("10.0.0.{a}:7401"),
            data_address: None,
            resources: self.scenario.node_resources(),
            labels: self.scenario.labels(a),
            features: NodeFeatures { cgroup_fence: true, cgroup_memory: true, object_store: false },
            feature_level: 1,
            adopted: adopted.map(|(key, _)| AdoptedWorker { attempt: key.attempt, rank: key.rank }).collect(),
            exited: exited.collect(),
        };
        (registration, over.into_iter().map(|(key, _)| *key).collect())
    }
}

const RESTORE_FOR_US: u64 = 30_000_000;
