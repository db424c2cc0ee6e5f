//! What only a leader does with the log: feeds its peers, counts what is durable, asks for quorum rounds.

use std::rc::Rc;

use outlast_control::state::Envelope;

use super::{Entry, Out, Raft, RaftMsg, Round};

/// Entries of one message.
const APPEND_MAX: usize = 64;

impl Raft {
    /// Only by a leader. Returns the entry's index.
    pub(crate) fn propose(&mut self, batch: Vec<Envelope>) -> u64 {
        self.entries.push(Entry { term: self.term, batch: Rc::new(batch) });
        self.sync();
        self.broadcast(0);
        self.last().0
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.syncing
    }

    pub(crate) fn beat(&mut self) {
        // What was not answered since is sent again.
        self.next.clone_from(&self.known);
        self.broadcast(0);
    }

    /// A quorum round that begins now.
    pub(crate) fn begin_round(&mut self) -> u64 {
        self.last_round += 1;
        let round = self.last_round;
        if !self.is_leader() {
            return round;
        }
        self.rounds.insert(round, Round { acks: 1 << self.me, index: self.commit });
        self.broadcast(round);
        self.ack_round(self.me, round);
        round
    }

    pub(crate) fn forget_round(&mut self, round: u64) {
        self.rounds.remove(&round);
    }

    fn ack_round(&mut self, from: usize, round: u64) {
        let quorum = self.quorum();
        let Some(asked) = self.rounds.get_mut(&round) else { return };
        asked.acks |= 1 << from;
        if asked.acks.count_ones() as usize >= quorum {
            let index = asked.index;
            self.rounds.remove(&round);
            self.out.push(Out::RoundDone { round, index });
        }
    }

    fn broadcast(&mut self, round: u64) {
        self.others().for_each(|other| self.feed(other, round));
    }

    fn feed(&mut self, to: usize, round: u64) {
        let next = self.next[to];
        let term = self.term;
        if next <= self.base.0 {
            let (at, bytes) = (self.base, self.snapshot.clone());
            self.next[to] = at.0 + 1;
            return self.send(to, RaftMsg::Install { term, at, bytes, round });
        }
        let prev = (next - 1, self.term_at(next - 1).unwrap_or(self.base.1));
        let from = (next - 1 - self.base.0) as usize;
        let entries: Vec<Entry> = self.entries[from..].iter().take(APPEND_MAX).cloned().collect();
        self.next[to] = next + entries.len() as u64;
        self.send(to, RaftMsg::Append { term, prev, entries, commit: self.commit, round });
    }

    pub(super) fn handle_appended(&mut self, from: usize, term: u64, matched: Result<u64, u64>, round: u64) {
        if term > self.term {
            return self.step_down(term);
        }
        if !self.is_leader() || term < self.term {
            return;
        }
        match matched {
            Ok(index) => {
                self.matched[from] = self.matched[from].max(index);
                self.known[from] = self.known[from].max(index + 1);
                self.next[from] = self.next[from].max(index + 1);
                self.advance();
            }
            Err(hint) => {
                self.next[from] = (hint + 1).min(self.next[from]).max(1);
                self.known[from] = self.next[from];
                self.feed(from, 0);
            }
        }
        if round > 0 {
            self.ack_round(from, round);
        }
    }

    pub(super) fn advance(&mut self) {
        self.matched[self.me] = self.durable();
        let mut sorted = self.matched.clone();
        sorted.sort_unstable();
        let reached = sorted[self.size - self.quorum()];
        // Only entries of the own term are committed by counting (Raft, section 5.4.2).
        if reached > self.commit && self.term_at(reached) == Some(self.term) {
            self.commit_to(reached);
        }
    }
}
