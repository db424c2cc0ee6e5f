//! The planner's shell: looks whenever something happened, and proposes what the real `plan` wants, except what is under way
//! already (`coordinator/src/leader/planner_loop.rs`, `in_flight.rs`).

use std::collections::BTreeSet;

use outlast_control::plan::{Now, Observations, PlannedSeal, Subject, plan};
use outlast_control::state::{ClusterState, Command};
use outlast_types::BootTime;

use crate::bytes::manifest_root;
use crate::coord::ReplyTo;
use crate::event::{Beat, CoordTimer, Host, What};
use crate::world::World;

const PAUSE_MIN_US: u64 = 10_000;
const PAUSE_MAX_US: u64 = 500_000;
const PROPOSALS_MAX: usize = 512;

pub(crate) struct Planner {
    seen: Observations,
    in_flight: BTreeSet<Subject>,
    pause_us: u64,
    /// No pass before this true time.
    not_before: u64,
    /// The pass that is due, and when.
    due: Option<u64>,
    number: u64,
    all_applied: Option<bool>,
}

impl Planner {
    pub(crate) fn new(seen: Observations) -> Self {
        Self {
            seen,
            in_flight: BTreeSet::new(),
            pause_us: PAUSE_MIN_US,
            not_before: 0,
            due: None,
            number: 0,
            all_applied: None,
        }
    }

    pub(crate) fn answered(&mut self, subject: &Subject, applied: bool) {
        self.in_flight.remove(subject);
        self.all_applied = Some(self.all_applied.unwrap_or(true) && applied);
    }

    /// What a heartbeat says beside "I live". Whether it is a reason to look.
    pub(crate) fn take_soft_state(&mut self, state: &ClusterState, beat: &Beat, at: BootTime) -> bool {
        let heartbeat = &beat.heartbeat;
        for (attempt, rank, step, cost) in &heartbeat.progress {
            if state.is_current(attempt) {
                self.seen.note_step(*attempt, *rank, *step, at);
                if let Some(cost) = cost {
                    self.seen.note_save_cost(*attempt, *rank, *cost);
                }
            }
        }
        for receipt in &heartbeat.receipts {
            let (job, seq, rank) = (receipt.shard.job(), receipt.shard.seq, receipt.shard.rank);
            let checkpoint = state.jobs.get(&job).and_then(|job| job.checkpoints.get(&seq));
            if checkpoint.is_none_or(|checkpoint| checkpoint.attempt != receipt.shard.attempt) {
                continue;
            }
            if let Some(why) = &receipt.failed {
                self.seen.note_failed(job, seq, rank, why.clone());
            }
            self.seen.note_staged(job, seq, rank);
            if let Some(root) = receipt.root {
                self.seen.note_receipt((job, seq), rank, root, SHARD_BYTES, receipt.holders.iter().cloned());
            }
        }
        for done in &heartbeat.done {
            let of = (done.shard.job(), done.shard.seq);
            self.seen.note_done(of, done.shard.rank, done.task, beat.node.clone());
        }
        !heartbeat.receipts.is_empty() || !heartbeat.done.is_empty()
    }

    fn settle_pause(&mut self) {
        match self.all_applied.take() {
            Some(false) => self.pause_us = (self.pause_us * 2).min(PAUSE_MAX_US),
            None if !self.in_flight.is_empty() => {}
            Some(true) | None => self.pause_us = PAUSE_MIN_US,
        }
    }
}

pub(crate) const SHARD_BYTES: u64 = 1 << 20;

fn seal(planned: PlannedSeal) -> Command {
    let PlannedSeal { job, seq, attempt, step, shards, durability, degraded, .. } = planned;
    let root = manifest_root(attempt, seq, step, shards.iter().map(|shard| shard.root));
    Command::SealCheckpoint { job, seq, attempt, manifest_root: root, shards, durability, degraded }
}

impl World {
    /// Something happened: a pass follows, as soon as the pause allows.
    pub(crate) fn want_pass(&mut self, c: usize) {
        let now = self.now;
        let Some(office) = &mut self.coords[c].office else { return };
        let at = office.planner.not_before.max(now);
        self.schedule_pass(c, at);
    }

    fn schedule_pass(&mut self, c: usize, at: u64) {
        let now = self.now;
        let Some(office) = &mut self.coords[c].office else { return };
        let planner = &mut office.planner;
        if planner.due.is_some_and(|due| due <= at) {
            return;
        }
        planner.due = Some(at);
        planner.number += 1;
        let number = planner.number;
        self.after(Host::Coord(c), at - now, What::Coord(CoordTimer::Pass(number)));
    }

    pub(crate) fn planner_pass(&mut self, c: usize, number: u64) {
        let now_us = self.now;
        let coord = &mut self.coords[c];
        let Some(office) = &mut coord.office else { return };
        if office.planner.number != number {
            return;
        }
        let now = Now { boot: coord.clock.boot(now_us), wall: coord.clock.wall(now_us) };
        let suspects = office.suspects();
        let (incarnation, ailing) = (office.incarnation, office.ailing.clone());
        let planner = &mut office.planner;
        planner.due = None;
        planner.settle_pause();
        planner.seen.suspects = suspects;
        planner.seen.ailing = ailing;
        planner.seen.follow(&coord.state, now);
        let planned = plan(&coord.state, &planner.seen, now);
        planner.not_before = now_us + planner.pause_us;
        let mut next =
            planned.next_check_ms.map_or(PAUSE_MAX_US, |ms| ms * 1_000).clamp(PAUSE_MIN_US, PAUSE_MAX_US);
        self.cover.passes += 1;
        if coord.state.incarnation == Some(incarnation) {
            let seals = planned.seals.into_iter().map(seal);
            let commands: Vec<Command> =
                seals.chain(planned.commands.into_iter().map(|planned| planned.command)).collect();
            commands.into_iter().for_each(|command| self.propose_planned(c, command));
        } else {
            next = PAUSE_MAX_US;
        }
        let pause = self.coords[c].office.as_ref().map_or(0, |office| office.planner.pause_us);
        self.schedule_pass(c, now_us + pause + next);
    }

    fn propose_planned(&mut self, c: usize, command: Command) {
        let Some(office) = &mut self.coords[c].office else { return };
        let in_flight = &mut office.planner.in_flight;
        let Some(subject) = Subject::of(&command) else { return };
        if in_flight.len() >= PROPOSALS_MAX || !in_flight.insert(subject.clone()) {
            return;
        }
        let envelope = self.system(c, command);
        self.propose(c, envelope, ReplyTo::Planner(subject));
    }
}
