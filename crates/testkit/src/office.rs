//! One leader's time in office: heartbeats in, one quorum round for all that came in, grants out; and who was silent for too
//! long. Around the real `LeaderLeases` (`coordinator/src/leader/lease_loop.rs`).

use std::collections::{BTreeMap, BTreeSet};

use outlast_control::lease::{HeartbeatReceipt, LeaderHealth, LeaderLeases, LeaseCondition, LeaseEvent};
use outlast_control::plan::Observations;
use outlast_control::state::{ClusterState, Command, Incarnation, NodeCondition, Response};
use outlast_types::{BootTime, NodeId, Profile, RegistrationId, Timers};

use crate::coord::ReplyTo;
use crate::event::{Answer, Beat, CoordTimer, DownMsg, Host, LeaseGrant, Msg, Route, What};
use crate::model_bug::ModelBug;
use crate::planner::Planner;
use crate::world::World;

const TICK_US: u64 = 50_000;
const ROUND_US: u64 = 1_000_000;
const COLLECT_US: u64 = 20_000;
const LOST_AGAIN_US: u64 = 50_000;
const QUORUM_AGE_MAX_MS: u64 = 1_000;

/// Heartbeats that were received together.
struct Batch {
    beats: Vec<Beat>,
    received_at: BootTime,
    received_us: u64,
    /// Who relayed them.
    from: usize,
}

pub(crate) struct Office {
    pub(crate) incarnation: Incarnation,
    pub(crate) leases: LeaderLeases,
    pub(crate) planner: Planner,
    waiting: Vec<Batch>,
    in_round: Vec<Batch>,
    /// The round and the true time at which it began, and where the state has to be once it is answered.
    round: Option<(u64, u64, Option<u64>)>,
    quorum_at: BootTime,
    quorum_fails: bool,
    followed: u64,
    pub(crate) ailing: BTreeMap<NodeId, String>,
    suspects: BTreeSet<NodeId>,
    declaring: BTreeSet<(NodeId, RegistrationId)>,
}

fn registered(state: &ClusterState) -> Vec<(NodeId, RegistrationId)> {
    let alive = state.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
    alive.map(|node| (node.id.clone(), node.registration)).collect()
}

impl Office {
    pub(crate) fn suspects(&self) -> BTreeSet<NodeId> {
        self.suspects.clone()
    }

    fn follow(&mut self, state: &ClusterState, now: BootTime) {
        if state.applied == self.followed {
            return;
        }
        self.followed = state.applied;
        for node in state.nodes.values() {
            match node.condition {
                NodeCondition::Registered => self.leases.register(&node.id, node.registration, now),
                NodeCondition::Lost => self.leases.forget(&node.id, node.registration),
            }
        }
    }

    /// Says whether a condition changed.
    fn publish(&mut self, state: &ClusterState) -> bool {
        let suspect = |(node, _): &(NodeId, RegistrationId)| {
            matches!(self.leases.condition(node), Some(LeaseCondition::Suspect | LeaseCondition::Expired))
        };
        let suspects: BTreeSet<NodeId> =
            registered(state).into_iter().filter(suspect).map(|(node, _)| node).collect();
        let changed = suspects != self.suspects;
        self.suspects = suspects;
        changed
    }
}

impl World {
    pub(crate) fn barrier_answered(&mut self, c: usize, answer: Answer) {
        match answer {
            Some((_, Response::Barrier(incarnation))) if self.coords[c].raft.is_leader() => {
                self.open_office(c, incarnation);
            }
            _ if self.coords[c].raft.is_leader() => self.propose_barrier(c),
            _ => {}
        }
    }

    fn open_office(&mut self, c: usize, incarnation: Incarnation) {
        self.trace(|| format!("c{} is in office, incarnation {}", c + 1, incarnation.index));
        let coord = &mut self.coords[c];
        let now = coord.clock.boot(self.now);
        let timers = Timers::of(Profile::Lan);
        let leases = LeaderLeases::new(timers, incarnation.index, now, registered(&coord.state));
        coord.office = Some(Office {
            incarnation,
            leases,
            planner: Planner::new(Observations::new(now)),
            waiting: Vec::new(),
            in_round: Vec::new(),
            round: None,
            quorum_at: now,
            quorum_fails: false,
            followed: 0,
            ailing: BTreeMap::new(),
            suspects: BTreeSet::new(),
            declaring: BTreeSet::new(),
        });
        self.cover.offices += 1;
        self.repeat_old_orders(c);
        self.after(Host::Coord(c), TICK_US, What::Coord(CoordTimer::Lease));
        self.want_pass(c);
    }

    /// What the process wanted in an earlier office comes late: it must have no effect that is not right now too (28, 31).
    fn repeat_old_orders(&mut self, c: usize) {
        let late = std::mem::take(&mut self.coords[c].late);
        if self.rng.per_mille(500) {
            late.into_iter().for_each(|envelope| self.propose(c, envelope, ReplyTo::Nobody));
        }
    }

    /// A heartbeat from an agent of this coordinator's own.
    pub(crate) fn relay_beat(&mut self, c: usize, beat: Beat) {
        if self.coords[c].office.is_some() {
            return self.receive_beats(c, c, vec![beat]);
        }
        let coord = &mut self.coords[c];
        coord.beats.push(beat);
        if coord.beats.len() == 1 {
            self.after(Host::Coord(c), COLLECT_US, What::Coord(CoordTimer::Flush));
        }
    }

    pub(crate) fn flush_beats(&mut self, c: usize) {
        let beats = std::mem::take(&mut self.coords[c].beats);
        if self.coords[c].office.is_some() {
            self.receive_beats(c, c, beats);
        } else if let Some(leader) = self.leader_of(c) {
            self.send(Host::Coord(c), Host::Coord(leader), Msg::Beats(beats));
        }
    }

    pub(crate) fn receive_beats(&mut self, c: usize, from: usize, beats: Vec<Beat>) {
        let now = self.now;
        let coord = &mut self.coords[c];
        let received_at = coord.clock.boot(now);
        let Some(office) = &mut coord.office else { return };
        let mut has_news = false;
        for beat in &beats {
            let known = coord.state.nodes.get(&beat.node);
            if known.is_none_or(|known| known.registration != beat.registration) {
                continue;
            }
            if beat.heartbeat.disk_full {
                has_news |= office.ailing.insert(beat.node.clone(), "its disk is full".to_owned()).is_none();
            } else {
                has_news |= office.ailing.remove(&beat.node).is_some();
            }
            has_news |= office.planner.take_soft_state(&coord.state, beat, received_at);
        }
        let batch = Batch { beats, received_at, received_us: now, from };
        let mut late = Some(batch);
        if self.model_bug == Some(ModelBug::JoinRunningRound) && office.round.is_some() {
            office.in_round.extend(late.take());
        }
        office.waiting.extend(late);
        self.begin_round(c);
        if has_news {
            self.want_pass(c);
        }
    }

    fn begin_round(&mut self, c: usize) {
        let Some(office) = &self.coords[c].office else { return };
        if office.round.is_none() && !office.waiting.is_empty() {
            self.ask_quorum(c);
        }
    }

    fn ask_quorum(&mut self, c: usize) {
        let now = self.now;
        let coord = &mut self.coords[c];
        let Some(office) = &mut coord.office else { return };
        office.in_round = std::mem::take(&mut office.waiting);
        if self.model_bug == Some(ModelBug::RenewWithoutQuorum) {
            office.round = Some((0, now, None));
            return self.finish_round(c, true);
        }
        // Who leads no more gets no quorum.
        let round = coord.raft.begin_round();
        office.round = Some((round, now, None));
        self.after(Host::Coord(c), ROUND_US, What::Coord(CoordTimer::RoundOver(round)));
        self.drive(c);
    }

    /// A quorum has answered; now the own state needs everything that was committed before the round.
    pub(crate) fn round_answered(&mut self, c: usize, round: u64, index: u64) {
        let coord = &mut self.coords[c];
        let Some(office) = &mut coord.office else { return };
        let Some((current, _, wait)) = &mut office.round else { return };
        if *current != round {
            return;
        }
        *wait = Some(index);
        if coord.state.applied >= index {
            self.finish_round(c, true);
        }
    }

    pub(crate) fn round_over(&mut self, c: usize, round: u64) {
        self.coords[c].raft.forget_round(round);
        let Some(office) = &self.coords[c].office else { return };
        if office.round.is_some_and(|(current, ..)| current == round) {
            self.finish_round(c, false);
        }
    }

    fn finish_round(&mut self, c: usize, confirmed: bool) {
        let now_us = self.now;
        let coord = &mut self.coords[c];
        let now = coord.clock.boot(now_us);
        let Some(office) = &mut coord.office else { return };
        let Some((_, began, _)) = office.round.take() else { return };
        office.quorum_fails = !confirmed;
        let batches = std::mem::take(&mut office.in_round);
        if confirmed {
            office.quorum_at = now;
            office.follow(&coord.state, now);
            for batch in batches {
                self.grant(c, batch, began);
            }
            self.publish_conditions(c);
        }
        self.begin_round(c);
    }

    fn grant(&mut self, c: usize, batch: Batch, began: u64) {
        let Some(office) = &mut self.coords[c].office else { return };
        let receipts: Vec<HeartbeatReceipt> = batch
            .beats
            .iter()
            .map(|beat| HeartbeatReceipt {
                node: beat.node.clone(),
                registration: beat.registration,
                seq: beat.heartbeat.seq,
                received_at: batch.received_at,
            })
            .collect();
        let granted = office.leases.confirmed(&receipts);
        let incarnation = office.incarnation.index;
        if granted.is_empty() {
            return;
        }
        self.check_round(c, batch.received_us, began);
        let state = &self.coords[c].state;
        let to_grant = |grant: outlast_control::lease::Grant| {
            let beat = batch.beats.iter().find(|beat| {
                (&beat.node, beat.registration, beat.heartbeat.seq)
                    == (&grant.node, grant.registration, grant.ack_seq)
            })?;
            Some(LeaseGrant {
                agent: beat.agent,
                registration: grant.registration,
                ack_seq: grant.ack_seq,
                incarnation,
                assignments_index: state.nodes.get(&grant.node).map_or(0, |node| node.assignments_changed_at),
                route: beat.route,
            })
        };
        let grants: Vec<LeaseGrant> = granted.into_iter().filter_map(to_grant).collect();
        if batch.from == c {
            self.pass_grants(c, grants);
        } else {
            self.send(Host::Coord(c), Host::Coord(batch.from), Msg::Grants(grants));
        }
    }

    pub(crate) fn pass_grants(&mut self, c: usize, grants: Vec<LeaseGrant>) {
        for grant in grants {
            match grant.route {
                Route::Session(number) => self.stream_down(c, number, DownMsg::Lease(grant)),
                Route::Hedge => {
                    let agent = grant.agent;
                    self.send(Host::Coord(c), Host::Agent(agent), Msg::Grants(vec![grant]));
                }
            }
        }
    }

    pub(crate) fn lease_tick(&mut self, c: usize) {
        let now_us = self.now;
        let coord = &mut self.coords[c];
        let now = coord.clock.boot(now_us);
        let Some(office) = &mut coord.office else { return };
        let asks =
            office.round.is_none() && (office.quorum_fails || office.leases.suspects().next().is_some());
        if office.round.is_none() && !asks {
            office.quorum_at = now;
        }
        if asks {
            self.ask_quorum(c);
        }
        let coord = &mut self.coords[c];
        let Some(office) = &mut coord.office else { return };
        office.follow(&coord.state, now);
        if now.since(office.quorum_at) > QUORUM_AGE_MAX_MS {
            office.leases.hold(now);
        } else {
            let events = office.leases.tick(now, LeaderHealth { good: true });
            for event in events {
                if let LeaseEvent::Lost { node, registration } = event {
                    self.trace(|| format!("c{} finds {node} lost under {registration}", c + 1));
                    self.declare_lost(c, node, registration);
                }
            }
        }
        self.publish_conditions(c);
        self.after(Host::Coord(c), TICK_US, What::Coord(CoordTimer::Lease));
    }

    fn publish_conditions(&mut self, c: usize) {
        let coord = &mut self.coords[c];
        let Some(office) = &mut coord.office else { return };
        if office.publish(&coord.state) {
            self.want_pass(c);
        }
    }

    pub(crate) fn declare_lost(&mut self, c: usize, node: NodeId, registration: RegistrationId) {
        let Some(office) = &mut self.coords[c].office else { return };
        if !office.declaring.insert((node.clone(), registration)) {
            return;
        }
        let incarnation = office.incarnation;
        let command = Command::NodeLost { node: node.clone(), registration, incarnation };
        let envelope = self.system(c, command);
        self.propose(c, envelope, ReplyTo::Lost(node, registration));
    }

    pub(crate) fn lost_answered(
        &mut self,
        c: usize,
        node: NodeId,
        registration: RegistrationId,
        answer: Answer,
    ) {
        let Some(office) = &mut self.coords[c].office else { return };
        office.declaring.remove(&(node.clone(), registration));
        let incarnation = office.incarnation.index;
        if answer.is_none() {
            let again = CoordTimer::Lost(node, registration, incarnation);
            self.after(Host::Coord(c), LOST_AGAIN_US, What::Coord(again));
        }
    }

    pub(crate) fn planner_answered(
        &mut self,
        c: usize,
        subject: outlast_control::plan::Subject,
        answer: Answer,
    ) {
        let Some(office) = &mut self.coords[c].office else { return };
        let applied = matches!(answer, Some((_, ref response)) if !matches!(response, Response::Refused(_)));
        office.planner.answered(&subject, applied);
        self.want_pass(c);
    }
}
