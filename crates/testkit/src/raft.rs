//! The replicated log as the control logic sees it: elections, appends, commits, quorum rounds, snapshots, and what a crash
//! leaves of it. Small on purpose: the real one is openraft, which has a simulator of its own.
//!
//! ```text
//!  follower ──no leader heard──► candidate ──quorum of votes──► leader ──higher term──► follower
//!  append: in memory ──sync──► durable ──► counted (a leader's own entries too)
//! ```
//! Pure: what is to be done comes out of [`Raft::take`]. The world gives it time, a disk and a network.

mod leading;

use std::collections::BTreeMap;
use std::rc::Rc;

use outlast_control::state::Envelope;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    pub(crate) batch: Rc<Vec<Envelope>>,
}

#[derive(Clone, Debug)]
pub(crate) enum RaftMsg {
    Vote { term: u64, last: (u64, u64) },
    Voted { term: u64, granted: bool },
    Append { term: u64, prev: (u64, u64), entries: Vec<Entry>, commit: u64, round: u64 },
    Appended { term: u64, matched: Result<u64, u64>, round: u64 },
    Install { term: u64, at: (u64, u64), bytes: Rc<Vec<u8>>, round: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum Out {
    Send(usize, RaftMsg),
    /// Make the log durable up to this index; the number says which log it was.
    Sync {
        upto: u64,
        version: u64,
    },
    Committed(u64),
    Elected(u64),
    Deposed,
    /// Somebody leads: wait again.
    Heard,
    /// A quorum has answered the round; the state has to be at this index.
    RoundDone {
        round: u64,
        index: u64,
    },
    /// Go on from this snapshot.
    Installed(Rc<Vec<u8>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Follower,
    Candidate(u64),
    Leader,
}

#[derive(Clone, Debug)]
struct Round {
    acks: u64,
    index: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Raft {
    me: usize,
    size: usize,
    pub(crate) term: u64,
    voted: Option<usize>,
    /// What the snapshot holds: index and term of its last entry.
    pub(crate) base: (u64, u64),
    pub(crate) snapshot: Rc<Vec<u8>>,
    entries: Vec<Entry>,
    /// Everything up to here is on the disk.
    pub(crate) synced: u64,
    pub(crate) role: Role,
    pub(crate) leader: Option<usize>,
    pub(crate) commit: u64,
    /// A follower's log is known to be its leader's up to here.
    agreed: u64,
    next: Vec<u64>,
    /// Where a peer is fed from again when it does not answer.
    known: Vec<u64>,
    matched: Vec<u64>,
    version: u64,
    syncing: bool,
    rounds: BTreeMap<u64, Round>,
    last_round: u64,
    /// Planted: what is in memory counts as durable.
    pub(crate) counts_unsynced: bool,
    out: Vec<Out>,
}

impl Raft {
    pub(crate) fn new(me: usize, size: usize) -> Self {
        Self {
            me,
            size,
            term: 0,
            voted: None,
            base: (0, 0),
            snapshot: Rc::new(Vec::new()),
            entries: Vec::new(),
            synced: 0,
            role: Role::Follower,
            leader: None,
            commit: 0,
            agreed: 0,
            next: vec![1; size],
            known: vec![1; size],
            matched: vec![0; size],
            version: 0,
            syncing: false,
            rounds: BTreeMap::new(),
            last_round: 0,
            counts_unsynced: false,
            out: Vec::new(),
        }
    }

    /// The process died: memory is gone, and of what was not synced the disk has `kept` entries (a torn one is none). `lost`:
    /// of what was synced.
    pub(crate) fn crash(&mut self, kept: u64, lost: u64) {
        if lost == u64::MAX {
            *self = Self { counts_unsynced: self.counts_unsynced, ..Self::new(self.me, self.size) };
            return;
        }
        let keep = (self.synced + kept).min(self.last().0).saturating_sub(lost).max(self.base.0);
        self.entries.truncate((keep - self.base.0) as usize);
        self.synced = keep;
        self.role = Role::Follower;
        self.leader = None;
        self.commit = self.base.0;
        self.agreed = 0;
        self.version += 1;
        self.syncing = false;
        self.rounds.clear();
        self.out.clear();
    }

    pub(crate) fn take(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.out)
    }

    /// Index and term of the last entry.
    pub(crate) fn last(&self) -> (u64, u64) {
        self.entries.last().map_or(self.base, |entry| (self.base.0 + self.entries.len() as u64, entry.term))
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.base.0 + 1)? as usize)
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 { Some(self.base.1) } else { self.entry(index).map(|entry| entry.term) }
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    fn quorum(&self) -> usize {
        self.size / 2 + 1
    }

    fn send(&mut self, to: usize, msg: RaftMsg) {
        self.out.push(Out::Send(to, msg));
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.size).filter(move |other| *other != me)
    }

    /// The state up to `index` is in these bytes; older entries may go.
    pub(crate) fn compact(&mut self, index: u64, bytes: Rc<Vec<u8>>) {
        let Some(term) = self.term_at(index) else { return };
        let gone = (index - self.base.0) as usize;
        self.entries.drain(..gone);
        self.base = (index, term);
        self.snapshot = bytes;
        self.synced = self.synced.max(index);
    }

    fn step_down(&mut self, term: u64) {
        if term > self.term {
            self.term = term;
            self.voted = None;
            self.leader = None;
            self.agreed = 0;
        }
        if self.role == Role::Leader {
            self.out.push(Out::Deposed);
        }
        self.role = Role::Follower;
        self.rounds.clear();
    }

    /// No leader was heard for too long.
    pub(crate) fn campaign(&mut self) {
        if self.is_leader() {
            return;
        }
        self.term += 1;
        self.voted = Some(self.me);
        self.leader = None;
        self.role = Role::Candidate(1 << self.me);
        let (term, last) = (self.term, self.last());
        self.others().for_each(|other| self.send(other, RaftMsg::Vote { term, last }));
        self.count_votes(1 << self.me);
    }

    fn count_votes(&mut self, votes: u64) {
        if (votes.count_ones() as usize) < self.quorum() {
            return;
        }
        self.role = Role::Leader;
        self.leader = Some(self.me);
        self.next = vec![self.last().0 + 1; self.size];
        self.known = self.next.clone();
        self.matched = vec![0; self.size];
        self.out.push(Out::Elected(self.term));
    }

    /// `hears_leader`: the lease of the one that leads is not over, so nobody else gets a vote.
    pub(crate) fn handle(&mut self, from: usize, msg: RaftMsg, hears_leader: bool) {
        match msg {
            RaftMsg::Vote { term, last } => self.handle_vote(from, term, last, hears_leader),
            RaftMsg::Voted { term, granted } => {
                if term > self.term {
                    return self.step_down(term);
                }
                let Role::Candidate(votes) = self.role else { return };
                if term == self.term && granted {
                    let votes = votes | 1 << from;
                    self.role = Role::Candidate(votes);
                    self.count_votes(votes);
                }
            }
            RaftMsg::Append { term, prev, entries, commit, round } => {
                if self.follows(from, term, round) {
                    let matched = self.append(prev, entries);
                    self.answer_append(from, matched, commit, round);
                }
            }
            RaftMsg::Appended { term, matched, round } => self.handle_appended(from, term, matched, round),
            RaftMsg::Install { term, at, bytes, round } => {
                if self.follows(from, term, round) {
                    self.install(at, bytes);
                    self.answer_append(from, Ok(at.0), at.0, round);
                }
            }
        }
    }

    fn handle_vote(&mut self, from: usize, term: u64, last: (u64, u64), hears_leader: bool) {
        if hears_leader || self.is_leader() && term == self.term {
            return;
        }
        if term > self.term {
            self.step_down(term);
        }
        let (index, of_term) = self.last();
        let is_as_new = (last.1, last.0) >= (of_term, index);
        let granted = term == self.term && is_as_new && self.voted.is_none_or(|voted| voted == from);
        if granted {
            self.voted = Some(from);
            self.out.push(Out::Heard);
        }
        self.send(from, RaftMsg::Voted { term: self.term, granted });
    }

    /// Whether the message is from the leader of this term or a newer one.
    fn follows(&mut self, from: usize, term: u64, round: u64) -> bool {
        if term < self.term {
            let answer = RaftMsg::Appended { term: self.term, matched: Err(self.last().0), round };
            self.send(from, answer);
            return false;
        }
        if term > self.term || self.role != Role::Follower {
            self.step_down(term);
        }
        if self.leader != Some(from) {
            self.leader = Some(from);
            self.agreed = 0;
        }
        self.out.push(Out::Heard);
        true
    }

    fn append(&mut self, prev: (u64, u64), entries: Vec<Entry>) -> Result<u64, u64> {
        let (mut index, term) = prev;
        if index < self.base.0 {
            // What the snapshot holds was committed, so it is the same.
            let skipped = (self.base.0 - index) as usize;
            if skipped > entries.len() {
                return Ok(self.base.0);
            }
            return self.append(self.base, entries[skipped..].to_vec());
        }
        if self.term_at(index) != Some(term) {
            return Err(self.last().0.min(index.saturating_sub(1)));
        }
        for entry in entries {
            index += 1;
            if self.term_at(index) == Some(entry.term) {
                continue;
            }
            if index <= self.last().0 {
                self.truncate(index - 1);
            }
            self.entries.push(entry);
        }
        self.sync();
        Ok(index)
    }

    fn truncate(&mut self, keep: u64) {
        self.entries.truncate((keep - self.base.0) as usize);
        self.synced = self.synced.min(keep);
        self.version += 1;
        self.syncing = false;
    }

    fn install(&mut self, at: (u64, u64), bytes: Rc<Vec<u8>>) {
        if at.0 <= self.commit {
            return;
        }
        if self.term_at(at.0) == Some(at.1) {
            // What follows the snapshot's last entry stays: it may have been acknowledged.
            self.entries.drain(..(at.0 - self.base.0) as usize);
            self.synced = self.synced.max(at.0);
        } else {
            self.entries.clear();
            self.synced = at.0;
            self.version += 1;
            self.syncing = false;
        }
        self.base = at;
        self.snapshot = bytes.clone();
        self.commit = at.0;
        self.out.push(Out::Installed(bytes));
    }

    fn answer_append(&mut self, from: usize, matched: Result<u64, u64>, commit: u64, round: u64) {
        if let Ok(index) = matched {
            self.agreed = self.agreed.max(index);
            self.commit_to(commit.min(index));
        }
        let matched = matched.map(|_| self.durable());
        self.send(from, RaftMsg::Appended { term: self.term, matched, round });
    }

    /// What may be counted of this log.
    fn durable(&self) -> u64 {
        let own = if self.counts_unsynced { self.last().0 } else { self.synced };
        if self.is_leader() { own } else { own.min(self.agreed) }
    }

    fn sync(&mut self) {
        let last = self.last().0;
        if !self.syncing && self.synced < last {
            self.syncing = true;
            self.out.push(Out::Sync { upto: last, version: self.version });
        }
    }

    pub(crate) fn sync_done(&mut self, upto: u64, version: u64) {
        if version != self.version {
            return;
        }
        self.syncing = false;
        self.synced = self.synced.max(upto);
        self.sync();
        match (self.is_leader(), self.leader) {
            (true, _) => self.advance(),
            (false, Some(leader)) => {
                let answer = RaftMsg::Appended { term: self.term, matched: Ok(self.durable()), round: 0 };
                self.send(leader, answer);
            }
            (false, None) => {}
        }
    }

    fn commit_to(&mut self, index: u64) {
        if index > self.commit {
            self.commit = index;
            self.out.push(Out::Committed(index));
        }
    }
}
