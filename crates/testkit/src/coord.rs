//! A coordinator: its log, its state, and what it has in hand. The replicated log is driven from here; the services are in
//! `decide` and `session`, the leader's duties in `office` and `planner`.

use std::collections::BTreeMap;
use std::rc::Rc;

use outlast_control::state::{
    ClusterState, Command, Envelope, Event as Told, Response, decode_state, encode_state,
};
use outlast_types::{Actor, CoordinatorId, NodeId, RegistrationId};

use crate::clock::Clock;
use crate::decide::Call;
use crate::event::{Answer, Beat, CoordTimer, Host, Msg, What};
use crate::model_bug::ModelBug;
use crate::office::Office;
use crate::raft::{Out, Raft, RaftMsg};
use crate::session::Session;
use crate::world::World;

/// Where the answer to a proposal goes.
#[derive(Clone, Debug)]
pub(crate) enum ReplyTo {
    Nobody,
    Planner(outlast_control::plan::Subject),
    Lost(NodeId, RegistrationId),
    Barrier,
    Own { call: u64, tries: u32 },
    Other { coord: usize, call: u64, tries: u32 },
}

pub(crate) struct Coord {
    pub(crate) id: CoordinatorId,
    pub(crate) up: bool,
    pub(crate) run: u32,
    pub(crate) paused_until: u64,
    pub(crate) clock: Clock,
    pub(crate) raft: Raft,
    pub(crate) state: ClusterState,
    election: u64,
    beat: u64,
    heard_at: u64,
    /// For the next entry.
    waiting: Vec<(Envelope, ReplyTo)>,
    replies: BTreeMap<u64, (u64, Vec<ReplyTo>)>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) sessions: BTreeMap<usize, Session>,
    pub(crate) beats: Vec<Beat>,
    pub(crate) office: Option<Office>,
    apply_due: bool,
    /// When it made its newest snapshot.
    snapshot_us: u64,
    /// How late this coordinator applies, at most.
    pub(crate) apply_lag_us: u64,
    /// How long its disk takes to sync, at most.
    pub(crate) sync_max_us: u64,
    pub(crate) peers_look: bool,
    /// What it proposed in its office, to be said again in a later one.
    pub(crate) late: Vec<Envelope>,
}

/// Heard of a leader within this time, nobody votes for another one (the least election timeout).
const LEADER_LEASE_US: u64 = 400_000;
const ELECTION_US: (u64, u64) = (400_000, 800_000);
const BEAT_US: u64 = 100_000;
/// Proposals of an office that its successor of the same process may repeat.
const LATE_MAX: usize = 12;
/// Entries that are kept in the log when a snapshot is made.
const SNAPSHOT_EVERY: u64 = 150;
const SYNC_US: (u64, u64) = (300, 4_000);
const LOOK_US: u64 = 1_000_000;

impl Coord {
    pub(crate) fn new(me: usize, size: usize, clock: Clock) -> Self {
        Self {
            id: CoordinatorId(me as u64 + 1),
            up: true,
            run: 1,
            paused_until: 0,
            clock,
            raft: Raft::new(me, size),
            state: ClusterState::new(),
            election: 0,
            beat: 0,
            heard_at: 0,
            waiting: Vec::new(),
            replies: BTreeMap::new(),
            calls: BTreeMap::new(),
            sessions: BTreeMap::new(),
            beats: Vec::new(),
            office: None,
            apply_due: false,
            snapshot_us: 0,
            apply_lag_us: 0,
            sync_max_us: SYNC_US.1,
            peers_look: false,
            late: Vec::new(),
        }
    }

    /// Memory is gone; the log is what the disk has.
    fn forget(&mut self) {
        self.run += 1;
        self.state = match self.raft.snapshot.is_empty() {
            true => ClusterState::new(),
            false => decode_state(&self.raft.snapshot).expect("a snapshot of our own"),
        };
        self.waiting.clear();
        self.replies.clear();
        self.calls.clear();
        self.sessions.clear();
        self.beats.clear();
        self.office = None;
        self.apply_due = false;
        self.peers_look = false;
        self.heard_at = 0;
        self.late.clear();
    }
}

impl World {
    pub(crate) fn start_coord(&mut self, c: usize) {
        self.coords[c].up = true;
        self.await_leader(c);
        self.after(Host::Coord(c), LOOK_US, What::Coord(CoordTimer::Look));
    }

    /// The process dies. `kept`: unsynced entries that reached the disk all the same.
    pub(crate) fn crash_coord(&mut self, c: usize) {
        if !self.coords[c].up {
            return;
        }
        let kept = self.rng.below(3);
        let numbers: Vec<u64> = self.coords[c].sessions.values().map(|session| session.number).collect();
        numbers.into_iter().for_each(|number| self.reset_stream(number, Host::Coord(c)));
        let lost = self.lost_by_planted_bug(c);
        let coord = &mut self.coords[c];
        coord.up = false;
        coord.raft.crash(kept, lost);
        coord.forget();
    }

    /// Entries that were synced and are gone all the same.
    fn lost_by_planted_bug(&mut self, c: usize) -> u64 {
        match self.model_bug {
            // The disk lied, and nobody compares with how far it had been.
            Some(ModelBug::IgnoreLostLog) => self.rng.below(4),
            // The log went before the snapshot was there.
            Some(ModelBug::PurgeFirst) if self.now - self.coords[c].snapshot_us < 20_000_000 => u64::MAX,
            _ => 0,
        }
    }

    /// Waits for a leader from now on; none heard of in time, it wants to be one.
    fn await_leader(&mut self, c: usize) {
        let timeout = self.rng.within(ELECTION_US.0, ELECTION_US.1);
        self.coords[c].election += 1;
        let gen_ = self.coords[c].election;
        self.after(Host::Coord(c), timeout, What::Coord(CoordTimer::Election(gen_)));
    }

    pub(crate) fn handle_coord(&mut self, c: usize, timer: CoordTimer) {
        match timer {
            CoordTimer::Election(number) => {
                if number == self.coords[c].election && !self.coords[c].raft.is_leader() {
                    self.coords[c].raft.campaign();
                    self.await_leader(c);
                    self.drive(c);
                }
            }
            CoordTimer::Beat(number) => {
                if number == self.coords[c].beat && self.coords[c].raft.is_leader() {
                    self.coords[c].raft.beat();
                    self.drive(c);
                    self.after(Host::Coord(c), BEAT_US, What::Coord(CoordTimer::Beat(number)));
                }
            }
            CoordTimer::Synced { upto, version } => {
                self.coords[c].raft.sync_done(upto, version);
                self.drive(c);
            }
            CoordTimer::Apply => {
                self.coords[c].apply_due = false;
                self.apply_committed(c);
            }
            CoordTimer::Try(call) => self.try_call(c, call),
            CoordTimer::TryOver(call, tries) => self.try_over(c, call, tries),
            CoordTimer::CallOver(call) => self.call_over(c, call),
            CoordTimer::Flush => self.flush_beats(c),
            CoordTimer::Lease => self.lease_tick(c),
            CoordTimer::RoundOver(round) => self.round_over(c, round),
            CoordTimer::Pass(number) => self.planner_pass(c, number),
            CoordTimer::Look => {
                self.look_again(c);
                self.after(Host::Coord(c), LOOK_US, What::Coord(CoordTimer::Look));
            }
            CoordTimer::PeersLook => self.look_at_peers(c),
            CoordTimer::Lost(node, registration, incarnation) => {
                let office = self.coords[c].office.as_ref();
                if office.is_some_and(|office| office.incarnation.index == incarnation) {
                    self.declare_lost(c, node, registration);
                }
            }
            CoordTimer::Leave(incarnation) => {
                let office = &mut self.coords[c].office;
                if office.as_ref().is_some_and(|office| office.incarnation.index == incarnation) {
                    *office = None;
                }
            }
        }
    }

    pub(crate) fn handle_raft(&mut self, c: usize, from: usize, msg: RaftMsg) {
        let coord = &mut self.coords[c];
        let hears = coord.heard_at > 0 && self.now - coord.heard_at < LEADER_LEASE_US;
        coord.raft.handle(from, msg, hears);
        self.drive(c);
    }

    /// Carries out what the log wants.
    pub(crate) fn drive(&mut self, c: usize) {
        loop {
            let outs = self.coords[c].raft.take();
            if outs.is_empty() {
                return;
            }
            outs.into_iter().for_each(|out| self.carry_out(c, out));
        }
    }

    fn carry_out(&mut self, c: usize, out: Out) {
        let me = Host::Coord(c);
        match out {
            Out::Send(to, msg) => self.send(me, Host::Coord(to), Msg::Raft(msg)),
            Out::Sync { upto, version } => {
                let took = self.rng.within(SYNC_US.0, self.coords[c].sync_max_us);
                self.after(me, took, What::Coord(CoordTimer::Synced { upto, version }));
            }
            Out::Committed(index) => self.committed(c, index),
            Out::Elected(term) => self.elected(c, term),
            Out::Deposed => self.deposed(c),
            Out::Heard => {
                self.coords[c].heard_at = self.now;
                self.await_leader(c);
            }
            Out::RoundDone { round, index } => self.round_answered(c, round, index),
            Out::Installed(bytes) => {
                self.cover.snapshots_installed += 1;
                self.coords[c].state = decode_state(&bytes).expect("a snapshot of our own");
                // What became of checkpoints meanwhile is told by events only: the sessions begin anew.
                self.end_all_sessions(c);
                self.state_moved(c);
            }
        }
    }

    fn elected(&mut self, c: usize, term: u64) {
        self.trace(|| format!("c{} leads in term {term}", c + 1));
        self.check_one_leader(c, term);
        // The barrier is proposed after the old office was left (`coordinator/src/leader/mod.rs`), if it still was held.
        self.coords[c].office = None;
        self.cover.leader_changes += 1;
        self.coords[c].beat += 1;
        let number = self.coords[c].beat;
        self.after(Host::Coord(c), 0, What::Coord(CoordTimer::Beat(number)));
        // The founder does it until it is done (`consensus/src/founding.rs`), and others vote only after that. Here all vote
        // from the beginning, so it falls to whoever leads; a second time changes nothing.
        if self.coords[c].state.config.is_none() {
            let command = self.init_command();
            self.propose(c, self.system(c, command), ReplyTo::Nobody);
        }
        self.propose_barrier(c);
    }

    pub(crate) fn propose_barrier(&mut self, c: usize) {
        let barrier = Command::Barrier { coordinator: self.coords[c].id };
        self.propose(c, self.system(c, barrier), ReplyTo::Barrier);
    }

    fn deposed(&mut self, c: usize) {
        self.trace(|| format!("c{} leads no more", c + 1));
        // Some believe in themselves for a moment longer.
        if let Some(office) = &self.coords[c].office {
            let leave = CoordTimer::Leave(office.incarnation.index);
            let late = if self.rng.per_mille(500) { self.rng.below(2_000_000) } else { 0 };
            self.after(Host::Coord(c), late, What::Coord(leave));
        }
        let coord = &mut self.coords[c];
        let waiting = std::mem::take(&mut coord.waiting);
        let replies = std::mem::take(&mut coord.replies);
        let all = waiting.into_iter().map(|(_, to)| to).chain(replies.into_values().flat_map(|(_, to)| to));
        for to in all.collect::<Vec<_>>() {
            self.answer(c, to, None);
        }
        self.await_leader(c);
    }

    pub(crate) fn system(&self, c: usize, command: Command) -> Envelope {
        let at = self.coords[c].clock.wall(self.now);
        Envelope { request: None, actor: Actor::System, source: None, cause: None, at, command }
    }

    /// Where this coordinator leads; else it is answered that it does not.
    pub(crate) fn propose(&mut self, c: usize, envelope: Envelope, to: ReplyTo) {
        if !self.coords[c].raft.is_leader() {
            return self.answer(c, to, None);
        }
        if matches!(to, ReplyTo::Planner(_) | ReplyTo::Lost(..)) && self.coords[c].late.len() < LATE_MAX {
            self.coords[c].late.push(envelope.clone());
        }
        self.coords[c].waiting.push((envelope, to));
        self.append_waiting(c);
    }

    /// What waits while the disk works is the next entry.
    fn append_waiting(&mut self, c: usize) {
        let coord = &mut self.coords[c];
        if coord.waiting.is_empty() || coord.raft.is_syncing() || !coord.raft.is_leader() {
            return;
        }
        let (batch, replies): (Vec<_>, Vec<_>) = std::mem::take(&mut coord.waiting).into_iter().unzip();
        let index = coord.raft.propose(batch);
        coord.replies.insert(index, (coord.raft.term, replies));
        self.drive(c);
    }

    fn committed(&mut self, c: usize, index: u64) {
        self.note_committed(c, index);
        let coord = &mut self.coords[c];
        if coord.apply_lag_us == 0 || coord.raft.is_leader() {
            return self.apply_committed(c);
        }
        if !coord.apply_due {
            coord.apply_due = true;
            let late = self.rng.below(self.coords[c].apply_lag_us);
            self.after(Host::Coord(c), late, What::Coord(CoordTimer::Apply));
        }
    }

    fn apply_committed(&mut self, c: usize) {
        while self.coords[c].up && self.coords[c].state.applied < self.coords[c].raft.commit {
            let coord = &mut self.coords[c];
            let index = coord.state.applied + 1;
            let entry =
                coord.raft.entry(index).expect("a committed entry that is not in the snapshot").clone();
            let mut responses = Vec::with_capacity(entry.batch.len());
            let mut told: Vec<Told> = Vec::new();
            for envelope in entry.batch.iter() {
                let (response, events) = coord.state.apply(index, envelope);
                responses.push(response);
                told.extend(events);
            }
            if entry.batch.is_empty() {
                coord.state.applied = index;
            }
            self.applied_here(c, index, entry.term, responses, &told);
        }
        if self.coords[c].state.applied >= self.coords[c].raft.base.0 + SNAPSHOT_EVERY {
            self.snapshot(c);
        }
        self.append_waiting(c);
    }

    fn applied_here(&mut self, c: usize, index: u64, term: u64, responses: Vec<Response>, told: &[Told]) {
        if let Some((proposed_in, replies)) = self.coords[c].replies.remove(&index) {
            let ours = proposed_in == term;
            for (to, response) in replies.into_iter().zip(responses) {
                self.answer(c, to, ours.then_some((index, response)));
            }
        }
        self.tell_sessions(c, told);
        self.state_moved(c);
    }

    /// Whoever waits for this coordinator's state looks again.
    fn state_moved(&mut self, c: usize) {
        self.finish_waiting_calls(c);
        self.want_pass(c);
    }

    fn snapshot(&mut self, c: usize) {
        let coord = &mut self.coords[c];
        let bytes = Rc::new(encode_state(&coord.state));
        let index = coord.state.applied;
        coord.raft.compact(index, bytes);
        coord.snapshot_us = self.now;
        self.cover.snapshots += 1;
    }

    pub(crate) fn answer(&mut self, c: usize, to: ReplyTo, answer: Answer) {
        match to {
            ReplyTo::Nobody => {}
            ReplyTo::Planner(subject) => self.planner_answered(c, subject, answer),
            ReplyTo::Lost(node, registration) => self.lost_answered(c, node, registration, answer),
            ReplyTo::Barrier => self.barrier_answered(c, answer),
            ReplyTo::Own { call, tries } => self.call_answered(c, call, tries, answer),
            ReplyTo::Other { coord, call, tries } => {
                self.send(Host::Coord(c), Host::Coord(coord), Msg::Relayed { call, tries, answer });
            }
        }
    }

    /// Who leads, as far as this coordinator knows.
    pub(crate) fn leader_of(&self, c: usize) -> Option<usize> {
        self.coords[c].raft.leader.filter(|leader| *leader != c)
    }
}
