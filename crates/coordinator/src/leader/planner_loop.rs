//! The planner's shell: looks whenever something happened, and proposes in the background what the pure function wants,
//! except what is under way already. A pass never waits for an answer; an answer is a reason for the next pass.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::plan::{Now, Observations, Plan, Subject, plan};
use outlast_control::state::{Command, Envelope, Incarnation, Refusal, Response};
use outlast_failpoint::{Failpoint, reach};
use outlast_proto::FieldError;
use outlast_proto::convert::{ReportedDone, ReportedProgress, ReportedReceipt};
use outlast_proto::node::v1::{Progress, Receipt, ShardDone};
use outlast_types::{Actor, BootTime, NodeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::in_flight::InFlight;
use super::{Board, seal};
use crate::clock::{boot_now, wall_now};
use crate::member::Member;

/// Heartbeats' contents that wait for the planner; each is sent again half a second later.
pub(super) const SOFT_MAX: usize = 4_096;
/// After a pass: a burst of entries is one pass, and passes take a tenth of a core as long as they are short. A seal waits
/// for this, so it is no longer than it has to be.
const REST_MIN: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(10);
const REST_FOR_WORK: u32 = 9;
/// After the first refusal.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// At least this often, whatever the plan says.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Of each proposal; what became of it is in the state that the pass after it looks at.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);

/// What one heartbeat said beside "I live".
pub(crate) struct SoftState {
    pub(crate) at: BootTime,
    pub(crate) node: NodeId,
    pub(crate) progress: Vec<Progress>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) done: Vec<ShardDone>,
}

struct PlannerLoop {
    member: Arc<Member>,
    incarnation: Incarnation,
    board: Arc<Board>,
    seen: Observations,
    in_flight: InFlight,
    /// Before the next pass. Grows while commands are refused: a refusal is an entry too, and would wake the planner for
    /// the same command again and again.
    pause: Duration,
}

/// Runs until it is dropped.
pub(super) async fn run(
    member: Arc<Member>,
    incarnation: Incarnation,
    board: Arc<Board>,
    mut inbox: mpsc::Receiver<SoftState>,
) {
    let seen = Observations::new(boot_now());
    let mut applied = member.consensus.applied();
    let in_flight = InFlight::default();
    let mut answer = None;
    let mut planner = PlannerLoop { member, incarnation, board, seen, in_flight, pause: Duration::ZERO };
    loop {
        applied.mark_unchanged();
        while let Ok(soft) = inbox.try_recv() {
            planner.take_soft_state(soft);
        }
        planner.take_answers(answer.take());
        let began = Instant::now();
        let next_check = planner.pass();
        let rest = (began.elapsed() * REST_FOR_WORK).clamp(REST_MIN, REST_MAX);
        tokio::time::sleep(rest.max(planner.pause)).await;
        let check = tokio::time::sleep(next_check);
        tokio::pin!(check);
        loop {
            tokio::select! {
                _ = applied.changed() => break,
                Some(soft) = inbox.recv() => {
                    // A step changes no plan (a hang has its time): else each heartbeat would cost a look at every job.
                    let has_receipts = !soft.receipts.is_empty() || !soft.done.is_empty();
                    planner.take_soft_state(soft);
                    if has_receipts {
                        break;
                    }
                }
                is_applied = planner.in_flight.answered() => {
                    answer = Some(is_applied);
                    break;
                }
                () = planner.board.conditions_changed.notified() => break,
                () = &mut check => break,
            }
        }
    }
}

impl PlannerLoop {
    /// Looks and proposes; says when to look again at the latest.
    fn pass(&mut self) -> Duration {
        self.seen.suspects = self.board.suspects();
        self.seen.ailing = self.board.ailing();
        let now = Now { boot: boot_now(), wall: wall_now() };
        let seen = &mut self.seen;
        let (planned, is_mine) = self.member.consensus.read(|state| {
            seen.follow(state, now);
            (plan(state, seen, now), state.incarnation == Some(self.incarnation))
        });
        if !is_mine {
            // A successor has passed its barrier: whatever is planned here would be refused.
            return PAUSE_MAX;
        }
        self.forget_progress();
        let next_check = planned.next_check_ms.map_or(PAUSE_MAX, Duration::from_millis);
        self.board.set_waiting(planned.waiting.clone());
        self.propose_all(planned);
        next_check.clamp(PAUSE_MIN, PAUSE_MAX)
    }

    /// The board's steps of attempts that are over.
    fn forget_progress(&self) {
        let member = &self.member;
        self.board.keep_progress(|attempt| member.state(|state| state.is_current(attempt)));
    }

    fn propose_all(&mut self, planned: Plan) {
        let Plan { commands, seals, .. } = planned;
        let seals = seals.into_iter().map(|planned| (seal::command(planned), None));
        let commands = commands.into_iter().map(|planned| (planned.command, planned.cause));
        for (command, cause) in seals.chain(commands) {
            let Some(subject) = Subject::of(&command) else {
                tracing::error!(what = name_of(&command), "a plan holds what no planner decides");
                continue;
            };
            // What is left out here is planned anew by the pass that follows an answer.
            if self.in_flight.has_room(&subject) {
                self.in_flight.begin(subject, propose(self.member.clone(), command, cause));
            }
        }
    }

    /// What was answered since the last pass, and what that makes of the pause.
    fn take_answers(&mut self, first: Option<bool>) {
        let mut all_applied = first;
        while let Some(is_applied) = self.in_flight.try_answered() {
            all_applied = Some(all_applied.unwrap_or(true) && is_applied);
        }
        match all_applied {
            Some(false) => self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
            None if !self.in_flight.is_empty() => {}
            Some(true) | None => self.pause = Duration::ZERO,
        }
    }

    fn take_soft_state(&mut self, soft: SoftState) {
        for progress in soft.progress {
            if let Err(error) = self.take_progress(progress, soft.at) {
                tracing::debug!(%error, "a reported step was left out");
            }
        }
        for receipt in soft.receipts {
            if let Err(error) = self.take_receipt(receipt) {
                tracing::debug!(%error, "a receipt was left out");
            }
        }
        for done in soft.done {
            if let Err(error) = self.take_done(&soft.node, done) {
                tracing::debug!(%error, "an order that was carried out was left out");
            }
        }
    }

    fn take_done(&mut self, node: &NodeId, done: ShardDone) -> Result<(), FieldError> {
        let ReportedDone { attempt, seq, rank, task } = done.try_into()?;
        self.seen.note_done((attempt.group.job, seq), rank, task, node.clone());
        Ok(())
    }

    fn take_progress(&mut self, progress: Progress, at: BootTime) -> Result<(), FieldError> {
        let ReportedProgress { attempt, rank, step, metrics, save_cost } = progress.try_into()?;
        if self.member.state(|state| state.is_current(&attempt)) {
            self.seen.note_step(attempt, rank, step, at);
            self.board.note_progress(attempt, rank, (step, metrics));
            if let Some(cost) = save_cost {
                self.seen.note_save_cost(attempt, rank, cost);
            }
        }
        Ok(())
    }

    fn take_receipt(&mut self, receipt: Receipt) -> Result<(), FieldError> {
        let receipt: ReportedReceipt = receipt.try_into()?;
        let job = receipt.attempt.group.job;
        // Of the attempt that opened it, and no other: a zombie may remember the number, not make the bytes count.
        let is_its_own = self.member.state(|state| {
            let checkpoint = state.jobs.get(&job).and_then(|job| job.checkpoints.get(&receipt.seq));
            checkpoint.is_some_and(|checkpoint| checkpoint.attempt == receipt.attempt)
        });
        if !is_its_own {
            return Ok(());
        }
        if let Some(why) = receipt.failed {
            self.seen.note_failed(job, receipt.seq, receipt.rank, why);
        }
        if receipt.staged {
            self.seen.note_staged(job, receipt.seq, receipt.rank);
        }
        if let Some(root) = receipt.root {
            self.seen.note_receipt(
                (job, receipt.seq),
                receipt.rank,
                root,
                receipt.size_bytes,
                receipt.holders,
            );
        }
        Ok(())
    }
}

/// Whether the command was applied, by the deadline.
async fn propose(member: Arc<Member>, command: Command, cause: Option<String>) -> bool {
    let what = name_of(&command);
    let (before, after) = failpoints(&command);
    let envelope =
        Envelope { request: None, actor: Actor::System, source: None, cause, at: wall_now(), command };
    if !pass(before).await {
        return false;
    }
    let decided = member.propose_here(envelope, PROPOSE_DEADLINE).await;
    if !pass(after).await {
        return false;
    }
    match decided {
        Ok(decided) => match decided.response {
            Response::Refused(refusal @ (Refusal::Conflict { .. } | Refusal::NotFound { .. })) => {
                tracing::debug!(what, %refusal, "the state had moved on; planned anew");
                false
            }
            Response::Refused(refusal) => {
                tracing::warn!(what, %refusal, "a planned command was refused");
                false
            }
            response => {
                tracing::debug!(what, index = decided.index, ?response, "planned command applied");
                true
            }
        },
        Err(failure) => {
            tracing::warn!(what, %failure, "a planned command was not applied; planned anew");
            false
        }
    }
}

/// Those before and after the commands that decide over bytes.
fn failpoints(command: &Command) -> (Option<Failpoint>, Option<Failpoint>) {
    match command {
        Command::SealCheckpoint { .. } => {
            (Some(Failpoint::LeaderSealBeforePropose), Some(Failpoint::LeaderSealAfterCommit))
        }
        Command::RetireCheckpoint { .. } => (Some(Failpoint::LeaderRetireBeforePropose), None),
        _ => (None, None),
    }
}

/// Whether to go on.
async fn pass(at: Option<Failpoint>) -> bool {
    match at {
        Some(at) => reach(at).await.is_ok(),
        None => true,
    }
}

fn name_of(command: &Command) -> &'static str {
    match command {
        Command::StartAttempt { .. } => "start_attempt",
        Command::StopAttempt { .. } => "stop_attempt",
        Command::EndAttempt { .. } => "end_attempt",
        Command::RequestCheckpoint { .. } => "request_checkpoint",
        Command::GiveUp { .. } => "give_up",
        Command::SealCheckpoint { .. } => "seal_checkpoint",
        Command::AbortCheckpoint { .. } => "abort_checkpoint",
        Command::RetireCheckpoint { .. } => "retire_checkpoint",
        Command::QuarantineCheckpoint { .. } => "quarantine_checkpoint",
        Command::QuarantineNode { .. } => "quarantine_node",
        Command::ExpireJob { .. } => "expire_job",
        Command::OrderShards { .. } => "order_shards",
        Command::ProveCheckpoint { .. } => "prove_checkpoint",
        Command::StoreCheckpoint { .. } => "store_checkpoint",
        Command::SetInterval { .. } => "set_interval",
        _ => "other",
    }
}
