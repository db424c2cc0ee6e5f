//! What workers' processes do on their machine, whatever becomes of their agent: they train, they hang, they crash; and their
//! keepers stop exclusive ones at the lease's deadline by themselves.

use outlast_types::{BootTime, ExitStatus, JobKind};

use crate::assigned::WorkerKey;
use crate::event::AgentTimer;
use crate::world::World;

/// Of an exclusive worker's keeper, from the beginning of the stop to the deadline.
pub(crate) const KILL_BUDGET_MS: u64 = 500;
pub(crate) const KILL_US: (u64, u64) = (2_000, 80_000);
pub(crate) const STEP_US: (u64, u64) = (150_000, 250_000);
const WAIT_US: u64 = 50_000;

/// A worker's process with its keeper.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) key: WorkerKey,
    pub(crate) exclusive: bool,
    pub(crate) kind: JobKind,
    pub(crate) world_size: u32,
    pub(crate) deadline: Option<BootTime>,
    pub(crate) alive: bool,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) is_fenced: bool,
    pub(crate) being_killed: bool,
    pub(crate) step: u64,
    pub(crate) steps: u64,
    pub(crate) every: u64,
    pub(crate) saved_step: u64,
    pub(crate) saving: bool,
    pub(crate) hung: bool,
    pub(crate) reports: bool,
}

impl World {
    /// The keeper's own timer.
    pub(crate) fn proc_fence(&mut self, a: usize, id: u64) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now);
        let Some(proc) = agent.procs.get_mut(&id).filter(|proc| proc.alive) else { return };
        let Some(deadline) = proc.deadline else { return };
        let fence_at = deadline.minus(KILL_BUDGET_MS);
        if now < fence_at {
            let at = agent.clock.when(fence_at);
            return self.on_machine(a, at.saturating_sub(self.now).max(1_000), AgentTimer::Fence(id));
        }
        proc.is_fenced = true;
        self.cover.fenced_by_keeper += 1;
        let took = self.rng.within(KILL_US.0, KILL_US.1);
        self.on_machine(a, took, AgentTimer::Killed(id));
    }

    pub(crate) fn pass_deadline_on(&mut self, a: usize, deadline: BootTime) {
        let agent = &mut self.agents[a];
        for tracked in agent.tracked.values().filter(|tracked| tracked.is_alive()) {
            if let Some(proc) = tracked.proc.and_then(|id| agent.procs.get_mut(&id))
                && proc.exclusive
            {
                proc.deadline = Some(deadline);
            }
        }
    }

    pub(crate) fn proc_ends(&mut self, a: usize, id: u64) {
        let Some(proc) = self.agents[a].procs.get(&id).filter(|proc| proc.alive) else { return };
        let status = match (proc.is_fenced, proc.being_killed) {
            (true, _) => ExitStatus::Fenced,
            (false, true) => ExitStatus::Signal(9),
            (false, false) => ExitStatus::Signal(15),
        };
        self.end_proc(a, id, status);
    }

    pub(crate) fn end_proc(&mut self, a: usize, id: u64, status: ExitStatus) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now);
        let Some(proc) = agent.procs.get_mut(&id).filter(|proc| proc.alive) else { return };
        proc.alive = false;
        proc.exit = Some(status);
        let (key, exclusive, deadline) = (proc.key, proc.exclusive, proc.deadline);
        self.trace(|| format!("{key:?} ends on node {a}: {status}"));
        self.check_ended(a, key, exclusive.then_some(deadline).flatten(), now);
        if self.agents[a].up {
            self.handle_exit(a, key, id);
        }
    }

    /// The machine lost power.
    pub(crate) fn vanish(&mut self, a: usize, id: u64) {
        self.agents[a].procs.remove(&id);
    }

    /// One step of training, or a look at whether the others have come as far.
    pub(crate) fn proc_step(&mut self, a: usize, id: u64) {
        let Some(proc) =
            self.agents[a].procs.get(&id).filter(|proc| proc.alive && !proc.hung && !proc.saving)
        else {
            return;
        };
        let (key, step, steps, every) = (proc.key, proc.step, proc.steps, proc.every);
        let (kind, saved_step, world_size) = (proc.kind, proc.saved_step, proc.world_size);
        let pause = self.rng.within(STEP_US.0, STEP_US.1);
        if self.scenario.crash_ppm > 0 && !self.healing && self.rng.ppm(self.scenario.crash_ppm) {
            self.cover.worker_crashes += 1;
            return self.end_proc(a, id, ExitStatus::Code(1));
        }
        // Nobody watches the steps of other kinds.
        let may_hang = kind == JobKind::Training && self.scenario.hang_ppm > 0 && !self.healing;
        if may_hang && self.rng.ppm(self.scenario.hang_ppm) {
            self.cover.worker_hangs += 1;
            if let Some(proc) = self.agents[a].procs.get_mut(&id) {
                proc.hung = true;
            }
            return;
        }
        if kind == JobKind::Service {
            return self.on_machine(a, pause * 4, AgentTimer::Step(id));
        }
        if step >= steps {
            return self.end_proc(a, id, ExitStatus::Code(0));
        }
        let asked = self.agents[a].tracked.get(&key).and_then(|tracked| tracked.assigned.as_ref());
        let asked = asked.is_some_and(|assigned| assigned.checkpoint_now);
        let save_at = self.gang_saves_at(key, step, asked);
        if step > saved_step && (every > 0 && step.is_multiple_of(every) || save_at == Some(step)) {
            return self.begin_save(a, id, step);
        }
        let next = if self.gang_is_at(key, step, world_size) { step + 1 } else { step };
        if let Some(proc) = self.agents[a].procs.get_mut(&id) {
            proc.step = next;
        }
        self.join_gang(key, next);
        self.on_machine(a, if next > step { pause } else { WAIT_US }, AgentTimer::Step(id));
    }

    /// A save came to an end, or to nothing: training goes on.
    pub(crate) fn train_on(&mut self, a: usize, id: u64, step: u64) {
        let pause = self.rng.within(1_000, 10_000);
        let Some(proc) = self.agents[a].procs.get_mut(&id).filter(|proc| proc.alive && proc.saving) else {
            return;
        };
        proc.saving = false;
        proc.saved_step = proc.saved_step.max(step);
        self.on_machine(a, pause, AgentTimer::Step(id));
    }
}
