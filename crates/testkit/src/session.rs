//! The coordinator's end of an agent's stream: what the node should do, computed from the own applied state alone, and what
//! the agent saw, on its way into the log (`coordinator/src/session`).

use std::collections::BTreeSet;

use outlast_control::state::{
    Checkpoint, CheckpointState, Command, Event as Told, NodeCondition, Observation, Refusal, Response,
};
use outlast_types::{CheckpointSeq, JobId, RegistrationId};

use crate::assigned::Desired;
use crate::desired::{desired, took_part, update};
use crate::event::{Adopted, Answer, CoordTimer, DownMsg, Heartbeat, Host, What};
use crate::world::World;

const PEERS_US: u64 = 200_000;
const BATCHES_MAX: usize = 8;

pub(crate) struct Session {
    pub(crate) number: u64,
    registration: RegistrationId,
    sent: Desired,
    sent_jobs: BTreeSet<JobId>,
    looked_index: u64,
    held_jobs: BTreeSet<JobId>,
    adopted: Adopted,
    wants_look: bool,
    /// Batches that wait for the one in hand.
    batches: Vec<(u64, Vec<Observation>)>,
    in_hand: bool,
}

impl Session {
    pub(crate) fn registration(&self) -> RegistrationId {
        self.registration
    }
}

impl World {
    /// Receipts that the agent would repeat for ever: their checkpoints are decided, or their records are gone.
    pub(crate) fn decided_receipts(&self, c: usize, heartbeat: &Heartbeat) -> Vec<(JobId, CheckpointSeq)> {
        let state = &self.coords[c].state;
        let is_decided = |(job, seq): &(JobId, CheckpointSeq)| match state.jobs.get(job) {
            Some(job) => {
                let is_open = |open: &Checkpoint| open.state == CheckpointState::Open;
                seq.0 < job.next_checkpoint && !job.checkpoints.get(seq).is_some_and(is_open)
            }
            None => job.0 < state.next_job,
        };
        heartbeat
            .receipts
            .iter()
            .map(|receipt| (receipt.shard.job(), receipt.shard.seq))
            .filter(is_decided)
            .collect()
    }

    #[expect(clippy::too_many_arguments, reason = "all that a Hello and its answer say")]
    pub(crate) fn welcome(
        &mut self,
        c: usize,
        agent: usize,
        number: u64,
        registration: RegistrationId,
        index: u64,
        adopted: Adopted,
        held: &[(JobId, CheckpointSeq)],
    ) {
        let session = Session {
            number,
            registration,
            sent: Desired::default(),
            sent_jobs: BTreeSet::new(),
            looked_index: 0,
            held_jobs: BTreeSet::new(),
            adopted,
            wants_look: false,
            batches: Vec::new(),
            in_hand: false,
        };
        self.coords[c].sessions.insert(agent, session);
        self.say(c, number, DownMsg::Welcome { index });
        self.send_wanted(c, agent);
        let mut held = held.to_vec();
        held.extend(self.coords[c].state.held_by_log(&self.agents[agent].node));
        held.sort_unstable();
        held.dedup();
        if let Some(session) = self.coords[c].sessions.get_mut(&agent) {
            session.held_jobs.extend(held.iter().map(|(job, _)| *job));
        }
        self.send_updates(c, agent, number, &held);
    }

    fn say(&mut self, c: usize, number: u64, msg: DownMsg) {
        self.stream_down(c, number, msg);
    }

    pub(crate) fn refuse(
        &mut self,
        c: usize,
        number: u64,
        registration: RegistrationId,
        register_anew: bool,
        last: bool,
    ) {
        self.say(c, number, DownMsg::Refused { registration, register_anew, last });
        self.close_stream(c, number);
    }

    /// The coordinator ends a stream.
    pub(crate) fn close_stream(&mut self, c: usize, number: u64) {
        self.coords[c].sessions.retain(|_, session| session.number != number);
        self.reset_stream(number, Host::Coord(c));
    }

    pub(crate) fn end_all_sessions(&mut self, c: usize) {
        let numbers: Vec<u64> = self.coords[c].sessions.values().map(|session| session.number).collect();
        numbers.into_iter().for_each(|number| self.close_stream(c, number));
    }

    pub(crate) fn tell_sessions(&mut self, c: usize, told: &[Told]) {
        let agents: Vec<usize> = self.coords[c].sessions.keys().copied().collect();
        for agent in agents {
            self.look_after(c, agent, told);
            self.tell_checkpoints(c, agent, told);
        }
    }

    fn look_after(&mut self, c: usize, agent: usize, told: &[Told]) {
        let node = &self.agents[agent].node;
        let coord = &mut self.coords[c];
        let Some(session) = coord.sessions.get_mut(&agent) else { return };
        let changed_at = coord.state.nodes.get(node).map_or(0, |node| node.assignments_changed_at);
        let is_own = |event: &Told| match event {
            Told::NodeRegistered { node: other }
            | Told::NodeLost { node: other }
            | Told::NodeChanged { node: other, .. } => other == node,
            other => other.job().is_some_and(|job| session.sent_jobs.contains(&job)),
        };
        if changed_at > session.sent.index || told.iter().any(is_own) {
            return self.send_changes(c, agent);
        }
        let of_peer = |event: &Told| {
            matches!(event, Told::NodeRegistered { .. } | Told::NodeLost { .. } | Told::NodeChanged { .. })
        };
        let has_work = !(session.sent.workers.is_empty() && session.sent.orders.is_empty());
        if has_work && told.iter().any(of_peer) {
            session.wants_look = true;
            if !std::mem::replace(&mut coord.peers_look, true) {
                self.after(Host::Coord(c), PEERS_US, What::Coord(CoordTimer::PeersLook));
            }
        }
    }

    pub(crate) fn look_at_peers(&mut self, c: usize) {
        self.coords[c].peers_look = false;
        let sessions = self.coords[c].sessions.iter_mut();
        let wanted =
            sessions.filter_map(|(agent, session)| std::mem::take(&mut session.wants_look).then_some(*agent));
        for agent in wanted.collect::<Vec<_>>() {
            self.send_changes(c, agent);
        }
    }

    /// What changed without an event is found at this pace.
    pub(crate) fn look_again(&mut self, c: usize) {
        let applied = self.coords[c].state.applied;
        let sessions = self.coords[c].sessions.iter();
        let old = sessions.filter(|(_, session)| session.looked_index < applied).map(|(agent, _)| *agent);
        for agent in old.collect::<Vec<_>>() {
            self.send_changes(c, agent);
        }
    }

    fn send_changes(&mut self, c: usize, agent: usize) {
        let node = &self.agents[agent].node;
        let coord = &self.coords[c];
        let Some(session) = coord.sessions.get(&agent) else { return };
        let (number, registration) = (session.number, session.registration);
        match coord.state.nodes.get(node) {
            Some(known) if known.registration == registration && known.condition == NodeCondition::Lost => {
                return self.refuse(c, number, registration, true, false);
            }
            Some(known) if known.registration == registration => {}
            _ => return self.refuse(c, number, registration, false, true),
        }
        let changed_at = coord.state.nodes.get(node).map_or(0, |node| node.assignments_changed_at);
        let wanted = desired(&coord.state, node, &session.adopted);
        let sent = &session.sent;
        let is_news =
            changed_at > sent.index || wanted.workers != sent.workers || wanted.orders != sent.orders;
        if is_news {
            return self.send_wanted(c, agent);
        }
        if let Some(session) = self.coords[c].sessions.get_mut(&agent) {
            session.looked_index = wanted.index;
        }
    }

    fn send_wanted(&mut self, c: usize, agent: usize) {
        let node = self.agents[agent].node.clone();
        let coord = &mut self.coords[c];
        let Some(session) = coord.sessions.get_mut(&agent) else { return };
        let wanted = desired(&coord.state, &node, &session.adopted);
        session.looked_index = wanted.index;
        session.sent_jobs = coord.state.held_on(&node).map(|(job, ..)| job.id).collect();
        session.sent = wanted.clone();
        let number = session.number;
        self.say(c, number, DownMsg::Desired(wanted));
    }

    fn tell_checkpoints(&mut self, c: usize, agent: usize, told: &[Told]) {
        let coord = &self.coords[c];
        let Some(session) = coord.sessions.get(&agent) else { return };
        let node = &self.agents[agent].node;
        let concerned = |event: &Told| match event {
            Told::CheckpointAborted { job, seq, .. }
            | Told::CheckpointQuarantined { job, seq, .. }
            | Told::CheckpointRetired { job, seq } => Some((*job, *seq)),
            Told::ShardCopied { job, seq, node: holder, .. } if holder == node => Some((*job, *seq)),
            Told::CheckpointSealed { job, seq, .. } => {
                let has_part = session.held_jobs.contains(job) || took_part(&coord.state, node, *job, *seq);
                has_part.then_some((*job, *seq))
            }
            _ => None,
        };
        let concerned: Vec<_> = told.iter().filter_map(concerned).collect();
        let number = session.number;
        self.send_updates(c, agent, number, &concerned);
    }

    pub(crate) fn send_updates(
        &mut self,
        c: usize,
        agent: usize,
        number: u64,
        of: &[(JobId, CheckpointSeq)],
    ) {
        if of.is_empty() {
            return;
        }
        let node = &self.agents[agent].node;
        let state = &self.coords[c].state;
        let updates = of.iter().filter_map(|(job, seq)| update(state, node, *job, *seq)).collect();
        self.say(c, number, DownMsg::Updates(updates));
    }

    pub(crate) fn handle_observations(
        &mut self,
        c: usize,
        agent: usize,
        first: u64,
        observations: Vec<Observation>,
    ) {
        let Some(session) = self.coords[c].sessions.get_mut(&agent) else { return };
        // The agent resends whatever is not acknowledged, so a full queue loses nothing.
        if session.batches.len() < BATCHES_MAX {
            session.batches.push((first, observations));
        }
        self.next_batch(c, agent);
    }

    fn next_batch(&mut self, c: usize, agent: usize) {
        let node = self.agents[agent].node.clone();
        let Some(session) = self.coords[c].sessions.get_mut(&agent) else { return };
        if session.in_hand || session.batches.is_empty() {
            return;
        }
        session.in_hand = true;
        let (first, observations) = session.batches.remove(0);
        let (number, registration) = (session.number, session.registration);
        self.propose_observations(
            c,
            agent,
            number,
            Command::Observe { node, registration, first, observations },
        );
    }

    pub(crate) fn observations_decided(&mut self, c: usize, agent: usize, number: u64, answer: Answer) {
        let Some(session) =
            self.coords[c].sessions.get_mut(&agent).filter(|session| session.number == number)
        else {
            return;
        };
        session.in_hand = false;
        match answer {
            Some((_, Response::Observed(newest))) => self.say(c, number, DownMsg::Observed(newest)),
            Some((_, Response::Refused(Refusal::Fenced { .. } | Refusal::NotFound { .. }))) => {
                // Says why, from the own state.
                self.send_changes(c, agent);
            }
            _ => {}
        }
        self.next_batch(c, agent);
    }
}
