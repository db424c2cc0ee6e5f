//! `ClusterState::apply`: the only way the state changes. Never fails, never panics: a refusal is a `Response`.
//!
//! Here: the envelope (request ids, feature level, initialisation) and the way to each command's handler. A handler
//! checks everything first and changes the state only when nothing can refuse any more.

mod attempt_end;
mod attempt_start;
mod attempt_verbs;
mod checkpoint;
mod coordinators;
mod generation;
mod interval;
mod job;
mod node;
mod node_lost;
mod observe;
mod register;
mod retire;
mod seal;
mod shards;

pub(super) use job::{check_spec, new_group};
pub(super) use shards::HOLDERS_MAX;

use outlast_types::{Actor, RequestId, WallTime};

use crate::planted::planted;

use super::{ClusterState, Command, Envelope, Event, Incarnation, Limits, Refusal, Response};

/// What a handler answers.
type Handled = Result<Response, Refusal>;

/// What a handler needs besides the state and its command.
struct Context<'a> {
    index: u64,
    at: WallTime,
    actor: &'a Actor,
    request: Option<&'a RequestId>,
    events: Vec<Event>,
}

impl Context<'_> {
    fn tell(&mut self, event: Event) {
        self.events.push(event);
    }
}

fn conflict(reason: impl Into<String>) -> Refusal {
    Refusal::Conflict { reason: reason.into() }
}
fn invalid(reason: impl Into<String>) -> Refusal {
    Refusal::Invalid { reason: reason.into() }
}
fn fenced(reason: impl Into<String>) -> Refusal {
    Refusal::Fenced { reason: reason.into() }
}
fn exhausted(reason: impl Into<String>) -> Refusal {
    Refusal::Exhausted { reason: reason.into() }
}
fn not_found(what: impl Into<String>) -> Refusal {
    Refusal::NotFound { what: what.into() }
}

/// The feature level that knows the command. A new variant names a higher one here, and nowhere else.
fn level_of(command: &Command) -> u32 {
    match command {
        Command::InitCluster { .. }
        | Command::OpenGeneration { .. }
        | Command::Barrier { .. }
        | Command::AddCoordinator { .. }
        | Command::RemoveCoordinator { .. }
        | Command::AnnounceCoordinator { .. }
        | Command::RaiseFeatureLevel { .. }
        | Command::RegisterNode(_)
        | Command::NodeLost { .. }
        | Command::CordonNode { .. }
        | Command::UncordonNode { .. }
        | Command::DrainNode { .. }
        | Command::LabelNode { .. }
        | Command::QuarantineNode { .. }
        | Command::Observe { .. }
        | Command::SubmitJob { .. }
        | Command::CancelJob { .. }
        | Command::ExpireJob { .. }
        | Command::StartAttempt { .. }
        | Command::StopAttempt { .. }
        | Command::EndAttempt { .. }
        | Command::RequestCheckpoint { .. }
        | Command::GiveUp { .. }
        | Command::OpenCheckpoint { .. }
        | Command::SealCheckpoint { .. }
        | Command::AbortCheckpoint { .. }
        | Command::RetireCheckpoint { .. }
        | Command::QuarantineCheckpoint { .. }
        | Command::PinCheckpoint { .. }
        | Command::OrderShards { .. }
        | Command::SetInterval { .. }
        | Command::ProveCheckpoint { .. }
        | Command::StoreCheckpoint { .. } => 1,
    }
}

impl ClusterState {
    /// Applies one command of the entry at `index`. Commands of one batch share the index.
    ///
    /// A request id that was answered before gets the same answer and has no effect (invariant 15).
    pub fn apply(&mut self, index: u64, envelope: &Envelope) -> (Response, Vec<Event>) {
        self.applied = index;
        if let Some((_, _, answer)) = envelope.request.as_ref().and_then(|request| self.requests.get(request))
        {
            return (answer.clone(), Vec::new());
        }
        let mut cx = Context {
            index,
            at: envelope.at,
            actor: &envelope.actor,
            request: envelope.request.as_ref(),
            events: Vec::new(),
        };
        let handled = self.admit(&envelope.command).and_then(|()| self.dispatch(&mut cx, &envelope.command));
        let events = if handled.is_ok() { cx.events } else { Vec::new() };
        let answer = handled.unwrap_or_else(Response::Refused);
        if let Some(request) = &envelope.request {
            self.remember(request, envelope.at, &answer);
        }
        (answer, events)
    }

    /// What every command has to pass before its handler sees it.
    fn admit(&self, command: &Command) -> Result<(), Refusal> {
        let level = level_of(command);
        if level > self.feature_level {
            return Err(conflict(format!(
                "this command needs feature level {level}, the cluster is at {}: upgrade every member first",
                self.feature_level
            )));
        }
        let needs_cluster = !matches!(command, Command::InitCluster { .. } | Command::Barrier { .. });
        if needs_cluster && self.config.is_none() {
            return Err(conflict("the cluster is not initialised: run `outlast cluster init` first"));
        }
        Ok(())
    }

    #[rustfmt::skip]
    fn dispatch(&mut self, cx: &mut Context<'_>, command: &Command) -> Handled {
        match command {
            Command::InitCluster { cluster_id, profile, address } => self.init_cluster(cx, cluster_id, *profile, address),
            Command::OpenGeneration { cluster_id, address, feature_level, reason } => self.open_generation(cx, cluster_id, address, *feature_level, reason),
            Command::Barrier { coordinator } => Ok(self.barrier(cx, *coordinator)),
            Command::AddCoordinator { address, feature_level } => self.add_coordinator(cx, address, *feature_level),
            Command::RemoveCoordinator { coordinator } => self.remove_coordinator(cx, *coordinator),
            Command::AnnounceCoordinator { coordinator, feature_level } => self.announce_coordinator(*coordinator, *feature_level),
            Command::RaiseFeatureLevel { level } => self.raise_feature_level(cx, *level),
            Command::RegisterNode(registration) => self.register_node(cx, registration),
            Command::NodeLost { node, registration, incarnation } => self.node_lost(cx, node, *registration, *incarnation),
            Command::CordonNode { node } => self.cordon_node(cx, node),
            Command::UncordonNode { node } => self.uncordon_node(cx, node),
            Command::DrainNode { node } => self.drain_node(cx, node),
            Command::LabelNode { node, set, remove } => self.label_node(cx, node, set, remove),
            Command::QuarantineNode { node, reason, incarnation } => self.quarantine_node(cx, node, reason, *incarnation),
            Command::Observe { node, registration, first, observations } => self.observe(cx, node, *registration, *first, observations),
            Command::SubmitJob { spec, bundle } => self.submit_job(cx, spec, bundle.as_ref()),
            Command::CancelJob { job, reason } => self.cancel_job(cx, *job, reason.as_deref()),
            Command::ExpireJob { job, incarnation } => self.expire_job(cx, *job, *incarnation),
            Command::StartAttempt { group, previous, rung, placed, restore, incarnation } => {
                let start = attempt_start::Start { group: *group, previous: *previous, rung: *rung, placed, restore };
                self.start_attempt(cx, &start, *incarnation)
            }
            Command::StopAttempt { attempt, cause, graceful, incarnation } => self.stop_attempt(cx, *attempt, cause, *graceful, *incarnation),
            Command::EndAttempt { attempt, incarnation } => self.end_attempt(cx, *attempt, *incarnation),
            Command::RequestCheckpoint { attempt, incarnation } => self.request_checkpoint(cx, *attempt, *incarnation),
            Command::GiveUp { group, reason, incarnation } => self.give_up(cx, *group, reason, *incarnation),
            Command::OpenCheckpoint { attempt, step, in_turn } => self.open_checkpoint(cx, *attempt, *step, *in_turn),
            Command::SealCheckpoint { job, seq, attempt, manifest_root, shards, durability, degraded } => {
                let seal = seal::Seal { job: *job, seq: *seq, attempt: *attempt, root: *manifest_root, shards, durability: *durability, degraded: *degraded };
                self.seal_checkpoint(cx, &seal)
            }
            Command::AbortCheckpoint { job, seq, reason, incarnation } => self.abort_checkpoint(cx, (*job, *seq), reason, *incarnation),
            Command::RetireCheckpoint { job, seq, incarnation } => self.retire_checkpoint(cx, *job, *seq, *incarnation),
            Command::QuarantineCheckpoint { job, seq, reason, incarnation } => self.quarantine_checkpoint(cx, (*job, *seq), reason, *incarnation),
            Command::PinCheckpoint { job, seq, pinned } => self.pin_checkpoint(cx, *job, *seq, *pinned),
            Command::OrderShards { job, seq, task, orders, incarnation } => self.order_shards(cx, (*job, *seq), *task, orders, *incarnation),
            Command::SetInterval { group, interval, incarnation } => self.set_interval(cx, *group, *interval, *incarnation),
            Command::ProveCheckpoint { job, seq, incarnation } => self.prove_checkpoint(cx, (*job, *seq), *incarnation),
            Command::StoreCheckpoint { job, seq, incarnation } => self.store_checkpoint(cx, (*job, *seq), *incarnation),
        }
    }

    /// Keeps a decided answer for retries. Requests that have to be mended, and full tables, decide nothing.
    fn remember(&mut self, request: &RequestId, at: WallTime, answer: &Response) {
        use Refusal::{Exhausted, Invalid, NotFound};
        if planted!(ForgetRequests) {
            return;
        }
        if matches!(answer, Response::Refused(NotFound { .. } | Invalid { .. } | Exhausted { .. })) {
            return;
        }
        let number = self.next_request;
        self.next_request += 1;
        self.requests.insert(request.clone(), (at, number, answer.clone()));
        self.request_order.insert(number, request.clone());
        while let Some((&oldest, id)) = self.request_order.first_key_value() {
            let expired =
                |(then, _, _): &(WallTime, u64, Response)| at.since(*then) > Limits::REQUEST_WINDOW_MS;
            let over = self.request_order.len() > Limits::REQUESTS_KEPT;
            if !over && !self.requests.get(id).is_none_or(expired) {
                break;
            }
            self.requests.remove(id);
            self.request_order.remove(&oldest);
        }
    }

    /// The same of commands that did not always name one: what is in an old log was accepted when it was written.
    fn check_planned(&self, incarnation: Option<Incarnation>) -> Result<(), Refusal> {
        incarnation.map_or(Ok(()), |incarnation| self.check_incarnation(incarnation))
    }

    /// Invariant 28: only the newest incarnation's timer-driven commands have an effect.
    fn check_incarnation(&self, incarnation: Incarnation) -> Result<(), Refusal> {
        match self.incarnation {
            Some(newest) if newest == incarnation || planted!(AnyIncarnation) => Ok(()),
            Some(newest) => Err(fenced(format!(
                "incarnation {} of {} is not the newest, which is {} of {}",
                incarnation.index, incarnation.coordinator, newest.index, newest.coordinator
            ))),
            None => Err(fenced("no leader has committed its barrier yet")),
        }
    }
}

/// At most `max` bytes of the text, cut at a character: nothing that an agent says may grow the state without bound.
fn bounded(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The longest reason that is kept.
const REASON_BYTES_MAX: usize = 2 << 10;
