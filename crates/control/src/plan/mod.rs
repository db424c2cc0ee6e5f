//! What should happen next: one pure function of the state, the leader's soft memory and the time.
//!
//! [`plan`] proposes; `apply` decides. Every command here is refused by `apply` if the state has moved on, so planning
//! twice, or with an older view, does no harm. All ladder rungs, budgets and waits of design section 5 are here.

mod drain;
mod hang;
mod health;
mod interval;
mod observations;
mod placement;
mod quarantine;
mod recovery;
mod restore;
mod retention;
mod seals;
mod starting;
mod subject;
mod upkeep;

use std::collections::BTreeMap;

use outlast_types::{AttemptId, BootTime, CheckpointSeq, Durability, GroupId, JobId, Millis, WallTime};

use crate::state::{AttemptPhase, ClusterState, Command, Group, Incarnation, Job, SealedShard};

pub use health::{DISK_CANARY_AGE_MAX_MS, DISK_FREE_MIN_BYTES, NodeHealth};
pub use interval::SaveCost;
pub use observations::{Observations, Progress, Receipt};
pub use subject::Subject;

use placement::Ledger;

/// Attempts that one pass starts: a pass stays short, and the next one follows at once.
const STARTS_MAX: usize = 64;
/// Commands of one pass, for the same reason; also what one log entry holds well.
const COMMANDS_MAX: usize = 512;
/// When a pass stopped at a bound, the next one comes this soon.
const AGAIN_MS: Millis = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub boot: BootTime,
    pub wall: WallTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedCommand {
    pub command: Command,
    /// The evidence, for the envelope.
    pub cause: Option<String>,
}

/// A checkpoint that is complete: the shell computes the manifest's root over `shards` and proposes the seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSeal {
    pub job: JobId,
    pub seq: CheckpointSeq,
    pub attempt: AttemptId,
    pub step: u64,
    pub world_size: u32,
    pub shards: Vec<SealedShard>,
    pub durability: Durability,
    pub degraded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    pub commands: Vec<PlannedCommand>,
    pub seals: Vec<PlannedSeal>,
    /// Plan again after this long even if nothing happens.
    pub next_check_ms: Option<Millis>,
    /// Why a group has no attempt that runs, for `explain`.
    pub waiting: BTreeMap<GroupId, String>,
}

impl Plan {
    fn check_in(&mut self, ms: Millis) {
        // Never a busy loop, however close the time is.
        let ms = ms.max(1);
        self.next_check_ms = Some(self.next_check_ms.map_or(ms, |earlier| earlier.min(ms)));
    }

    fn wait(&mut self, group: GroupId, why: impl Into<String>) {
        self.waiting.insert(group, why.into());
    }

    fn push(&mut self, command: Command, cause: Option<String>) {
        self.commands.push(PlannedCommand { command, cause });
    }
}

/// What every part of a pass looks at.
struct Pass<'a> {
    state: &'a ClusterState,
    seen: &'a Observations,
    now: Now,
    incarnation: Incarnation,
    ledger: Ledger<'a>,
    starts: usize,
    /// The job that this pass gave up last: nothing more of it is started.
    given_up: Option<JobId>,
    plan: Plan,
}

/// Plans. Call [`Observations::follow`] with the same state and time first. Nothing is planned before a barrier.
pub fn plan(state: &ClusterState, seen: &Observations, now: Now) -> Plan {
    let Some(incarnation) = state.incarnation else { return Plan::default() };
    let ledger = Ledger::new(state, seen);
    let mut pass =
        Pass { state, seen, now, incarnation, ledger, starts: 0, given_up: None, plan: Plan::default() };
    seals::plan(&mut pass);
    for job in state.active_jobs() {
        if pass.plan.commands.len() >= COMMANDS_MAX || pass.starts >= STARTS_MAX {
            pass.plan.check_in(AGAIN_MS);
            break;
        }
        plan_job(&mut pass, job);
    }
    plan_upkeep(&mut pass);
    quarantine::plan(&mut pass);
    retention::expire(&mut pass);
    pass.plan
}

/// Active jobs in every pass; the last checkpoints of finished ones when it is their turn.
fn plan_upkeep(pass: &mut Pass<'_>) {
    let mut nodes = upkeep::Nodes::of(pass);
    let state = pass.state;
    let (active, finished) = (state.active_jobs(), state.jobs.values().filter(|job| job.state.is_final()));
    let finished = finished.filter(|_| pass.seen.looks_at_finished);
    for job in active.chain(finished) {
        if job.state.is_final() {
            // Its last proof may come after its end, and only then may what is older go.
            retention::retire(pass, job);
        }
        if pass.plan.commands.len() >= COMMANDS_MAX {
            return pass.plan.check_in(AGAIN_MS);
        }
        job.groups.iter().for_each(|group| upkeep::plan(pass, &mut nodes, job, group));
    }
}

fn plan_job(pass: &mut Pass<'_>, job: &Job) {
    retention::retire(pass, job);
    for group in &job.groups {
        plan_group(pass, job, group);
        if pass.given_up == Some(job.id) {
            return;
        }
    }
}

fn plan_group(pass: &mut Pass<'_>, job: &Job, group: &Group) {
    match group.current() {
        Some(attempt) if attempt.phase == AttemptPhase::Stopping => {
            recovery::stopping(pass, job, group, attempt)
        }
        // One wanted stop is enough.
        Some(attempt) if starting::plan(pass, job, attempt) || hang::plan(pass, job, attempt) => {}
        Some(attempt) => {
            interval::plan(pass, job, group, attempt);
            drain::plan(pass, job, attempt);
        }
        None if !group.done && !job.is_ending() => recovery::start(pass, job, group),
        None => {}
    }
}
