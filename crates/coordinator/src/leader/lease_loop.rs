//! The leases: heartbeats in, one quorum round for all that came in, grants out; and who was silent for too long.
//!
//! ```text
//!  batch received ──► waits (while a round is under way) ──► round begins ──► confirmed ──► grants
//!                                                                └ failed: nothing is answered, nothing is renewed
//! ```
//! A round begins after everything in its batch was received, so what it confirms is a lease (L1, invariant 27).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use outlast_control::lease::{HeartbeatReceipt, LeaderHealth, LeaderLeases, LeaseCondition, LeaseEvent};
use outlast_control::state::{ClusterState, Incarnation, NodeCondition};
use outlast_proto::node::v1::{Health, LeaseGrant};
use outlast_proto::relay::v1::RelayedGrant;
use outlast_types::{BootTime, NodeId, RegistrationId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::planner_loop::SoftState;
use super::{Board, ConfirmRequest, lost};
use crate::clock::boot_now;
use crate::disk::HUNG_AFTER_MS;
use crate::member::Member;

const TICK: Duration = Duration::from_millis(50);
/// Batches that are answered by one round.
const ROUND_BATCHES_MAX: usize = 256;
/// A round that takes longer is given up: its agents have sent again by then.
const ROUND_DEADLINE: Duration = Duration::from_millis(1_000);
/// Where rounds are asked for, the last successful one may be this old; then the leases stand still.
const QUORUM_AGE_MAX_MS: u64 = 1_000;

type Round = Pin<Box<dyn Future<Output = bool> + Send>>;

struct LeaseLoop {
    member: Arc<Member>,
    incarnation: Incarnation,
    board: Arc<Board>,
    soft: mpsc::Sender<SoftState>,
    leases: LeaderLeases,
    applied: watch::Receiver<u64>,
    /// Received, not yet in a round.
    waiting: Vec<ConfirmRequest>,
    /// In the round that is under way.
    in_round: Vec<ConfirmRequest>,
    round: Option<Round>,
    /// When a round last succeeded, or none was needed.
    quorum_at: BootTime,
    /// The last round failed.
    quorum_fails: bool,
    lost: JoinSet<()>,
}

/// Runs until it is dropped.
pub(super) async fn run(
    member: Arc<Member>,
    incarnation: Incarnation,
    board: Arc<Board>,
    inbox: mpsc::Receiver<ConfirmRequest>,
    soft: mpsc::Sender<SoftState>,
) {
    let now = boot_now();
    // Unseen, so that the first tick looks at the state again: something may have been applied in between.
    let mut applied = member.consensus.applied();
    applied.mark_changed();
    let nodes = member.state(registered);
    let leases = LeaderLeases::new(member.timers, incarnation.index, now, nodes);
    let lease_loop = LeaseLoop {
        member,
        incarnation,
        board,
        soft,
        leases,
        applied,
        waiting: Vec::new(),
        in_round: Vec::new(),
        round: None,
        quorum_at: now,
        quorum_fails: false,
        lost: JoinSet::new(),
    };
    lease_loop.serve(inbox).await;
}

fn registered(state: &ClusterState) -> Vec<(NodeId, RegistrationId)> {
    let alive = state.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
    alive.map(|node| (node.id.clone(), node.registration)).collect()
}

impl LeaseLoop {
    async fn serve(mut self, mut inbox: mpsc::Receiver<ConfirmRequest>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.waiting.len() < ROUND_BATCHES_MAX;
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                is_confirmed = next_round(&mut self.round) => self.finish_round(is_confirmed),
                Some(request) = inbox.recv(), if has_room => self.receive(request),
            }
        }
    }

    fn receive(&mut self, request: ConfirmRequest) {
        self.pass_soft_state(&request);
        self.waiting.push(request);
        self.begin_round();
    }

    /// One round at a time: what arrives meanwhile is the next batch.
    fn begin_round(&mut self) {
        if self.round.is_none() && !self.waiting.is_empty() {
            self.ask_quorum();
        }
    }

    fn ask_quorum(&mut self) {
        self.in_round = std::mem::take(&mut self.waiting);
        let member = self.member.clone();
        self.round = Some(Box::pin(async move { confirm(&member).await }));
    }

    fn finish_round(&mut self, is_confirmed: bool) {
        self.round = None;
        self.quorum_fails = !is_confirmed;
        let batches = std::mem::take(&mut self.in_round);
        if is_confirmed {
            self.quorum_at = boot_now();
            self.follow_state();
            self.grant(batches);
        } else {
            tracing::debug!(batches = batches.len(), "heartbeats were not confirmed");
        }
        self.begin_round();
    }

    fn grant(&mut self, batches: Vec<ConfirmRequest>) {
        for ConfirmRequest { heartbeats, received_at, reply } in batches {
            let receipt = |heartbeat: outlast_proto::relay::v1::RelayedHeartbeat| {
                Some(HeartbeatReceipt {
                    node: heartbeat.node.parse().ok()?,
                    registration: RegistrationId(heartbeat.registration),
                    seq: heartbeat.heartbeat?.seq,
                    received_at,
                })
            };
            let receipts: Vec<_> = heartbeats.into_iter().filter_map(receipt).collect();
            let grants = self.leases.confirmed(&receipts);
            let changed_at = self.member.state(|state| {
                let of = |node: &NodeId| state.nodes.get(node).map_or(0, |node| node.assignments_changed_at);
                grants.iter().map(|grant| of(&grant.node)).collect::<Vec<_>>()
            });
            let relayed = grants.into_iter().zip(changed_at).map(|(grant, assignments_index)| RelayedGrant {
                node: grant.node.to_string(),
                grant: Some(LeaseGrant {
                    ack_seq: grant.ack_seq,
                    lease_ms: self.member.timers.lease_ms,
                    incarnation: self.incarnation.index,
                    assignments_index,
                    registration: grant.registration.0,
                }),
            });
            // A relay that has given up needs no answer; the lease is longer than it knows, which harms nobody.
            let _ = reply.send(relayed.collect());
        }
    }

    /// Health goes to the board, steps and receipts to the planner. They are sent again with each heartbeat, so what finds
    /// no room is not lost; what a stale registration says is. None of it renews or shortens a lease.
    fn pass_soft_state(&self, request: &ConfirmRequest) {
        let at = request.received_at;
        for relayed in &request.heartbeats {
            let Some(heartbeat) = &relayed.heartbeat else { continue };
            let Ok(node) = relayed.node.parse::<NodeId>() else { continue };
            let is_current = self.member.state(|state| {
                state.nodes.get(&node).is_some_and(|node| node.registration.0 == relayed.registration)
            });
            if !is_current {
                continue;
            }
            self.note_health(&node, heartbeat.health.clone());
            if !heartbeat.progress.is_empty() || !heartbeat.receipts.is_empty() || !heartbeat.done.is_empty()
            {
                let (progress, receipts) = (heartbeat.progress.clone(), heartbeat.receipts.clone());
                let done = heartbeat.done.clone();
                let _ = self.soft.try_send(SoftState { at, node, progress, receipts, done });
            }
        }
    }

    fn note_health(&self, node: &NodeId, health: Option<Health>) {
        match self.board.note_health(node, health.map(Into::into)) {
            Some(Some(complaint)) => {
                tracing::warn!(%node, complaint, "node is not well: nothing new is placed there")
            }
            Some(None) => tracing::info!(%node, "node is well again"),
            None => {}
        }
    }

    /// New registrations get a lease; nodes that the log calls Lost have none.
    fn follow_state(&mut self) {
        if !self.applied.has_changed().unwrap_or(false) {
            return;
        }
        self.applied.mark_unchanged();
        let now = boot_now();
        let nodes = self.member.state(|state| {
            let all = state.nodes.values();
            all.map(|node| (node.id.clone(), node.registration, node.condition)).collect::<Vec<_>>()
        });
        for (node, registration, condition) in nodes {
            match condition {
                NodeCondition::Registered => self.leases.register(&node, registration, now),
                NodeCondition::Lost => self.leases.forget(&node, registration),
            }
        }
        self.publish();
    }

    fn tick(&mut self) {
        let now = boot_now();
        self.watch_quorum(now);
        self.follow_state();
        let disk_age_ms = self.member.disk.age_ms();
        let quorum_age_ms = now.since(self.quorum_at);
        if quorum_age_ms > QUORUM_AGE_MAX_MS {
            self.leases.hold(now);
            return self.board.set_holding(Some(format!(
                "no quorum of coordinators answers (the last one {quorum_age_ms} ms ago): no lease runs meanwhile"
            )));
        }
        let good = disk_age_ms <= HUNG_AFTER_MS;
        let events = self.leases.tick(now, LeaderHealth { good });
        if good {
            self.board.set_holding(None);
        }
        if events.is_empty() {
            return;
        }
        for event in events {
            self.handle(event, now, disk_age_ms, quorum_age_ms);
        }
        self.publish();
    }

    /// Who is silent may be so because nothing is confirmed: then, and after a failure, the quorum is asked even if no
    /// heartbeat waits for it.
    fn watch_quorum(&mut self, now: BootTime) {
        if self.round.is_some() {
            return;
        }
        if self.quorum_fails || self.leases.suspects().next().is_some() {
            self.ask_quorum();
        } else {
            self.quorum_at = now;
        }
    }

    fn handle(&mut self, event: LeaseEvent, now: BootTime, disk_age_ms: u64, quorum_age_ms: u64) {
        match event {
            LeaseEvent::Suspect(node) => tracing::warn!(%node, "node is silent: nothing new is placed there"),
            LeaseEvent::Ready(node) => tracing::info!(%node, "node is heard again"),
            LeaseEvent::Lost { node, registration } => {
                let silent_ms = self.leases.last_heard(&node).map_or(0, |heard| now.since(heard));
                while self.lost.try_join_next().is_some() {}
                self.lost.spawn(lost::declare(
                    self.member.clone(),
                    node,
                    registration,
                    self.incarnation,
                    silent_ms,
                ));
            }
            LeaseEvent::Braked { late, of, .. } => {
                let text = format!(
                    "{late} of {of} nodes are late at once while this leader is ill (last sync {disk_age_ms} ms ago, \
                     last quorum {quorum_age_ms} ms ago): they are held for one more lease"
                );
                tracing::error!("{text}");
                self.board.set_holding(Some(text));
            }
            LeaseEvent::Stalled { gap_ms } => {
                tracing::warn!(gap_ms, "this leader stood still; every lease was made longer by as much");
            }
        }
    }

    fn publish(&self) {
        let nodes = self.member.state(registered);
        let word = |node: &NodeId| match self.leases.condition(node) {
            Some(LeaseCondition::Ready) | None => "ready",
            Some(LeaseCondition::Suspect | LeaseCondition::Expired) => "suspect",
        };
        let conditions: BTreeMap<NodeId, String> = nodes
            .into_iter()
            .map(|(node, _)| {
                let word = word(&node).to_owned();
                (node, word)
            })
            .collect();
        self.board.set_conditions(conditions);
    }
}

/// The round that is under way, or nothing for ever.
async fn next_round(round: &mut Option<Round>) -> bool {
    match round {
        Some(round) => round.await,
        None => std::future::pending().await,
    }
}

/// A quorum round that begins now; then the own state has everything that was committed before it.
async fn confirm(member: &Member) -> bool {
    let round = async {
        let index = member.consensus.quorum_round().await.ok()?;
        member.consensus.wait_applied(index, ROUND_DEADLINE).await.ok()
    };
    matches!(tokio::time::timeout(ROUND_DEADLINE, round).await, Ok(Some(())))
}
