//! The log: invariants 1, 4 to 7, 9, 10, 13. A disk that lost what it had synced (10) shows as a committed entry that is
//! replaced, or that too few disks have.

use outlast_control::state::{ClusterState, decode_state, encode_state};

use crate::world::World;

impl World {
    pub(crate) fn check_one_leader(&mut self, c: usize, term: u64) {
        let first = *self.checks.leaders.entry(term).or_insert(c);
        if first != c {
            self.fail("1 election safety", format!("c{} and c{} lead in term {term}", first + 1, c + 1));
        }
    }

    /// A coordinator believes that everything up to here is committed.
    pub(crate) fn note_committed(&mut self, c: usize, upto: u64) {
        let from = self.checks.compared.get(&c).copied().unwrap_or(0).max(self.coords[c].raft.base.0) + 1;
        for index in from..=upto {
            let Some(entry) = self.coords[c].raft.entry(index).cloned() else { continue };
            match self.checks.log.get(index as usize - 1) {
                Some((term, batch)) => {
                    if *term != entry.term || **batch != *entry.batch {
                        return self.fail(
                            "4, 6 what is committed is one and stays",
                            format!(
                                "entry {index} is of term {term}, and at c{} of term {}",
                                c + 1,
                                entry.term
                            ),
                        );
                    }
                }
                None => {
                    self.inv_5_committed_is_on_a_quorum_of_disks(c, index, entry.term);
                    self.checks.log.push((entry.term, entry.batch.clone()));
                    self.apply_committed_truth(index, &entry.batch);
                }
            }
        }
        self.checks.compared.insert(c, upto);
    }

    /// And so is every acknowledgement, which is given after it (invariant 9).
    fn inv_5_committed_is_on_a_quorum_of_disks(&mut self, c: usize, index: u64, term: u64) {
        let has = |raft: &crate::raft::Raft| {
            raft.synced >= index && (raft.base.0 >= index || raft.term_at(index) == Some(term))
        };
        let disks = self.coords.iter().filter(|coord| has(&coord.raft)).count();
        if disks * 2 <= self.coords.len() {
            self.fail(
                "5, 9 committed on a quorum of disks before it is acknowledged",
                format!(
                    "entry {index}, committed by c{}, is on {disks} of {} disks",
                    c + 1,
                    self.coords.len()
                ),
            );
        }
    }

    fn apply_committed_truth(&mut self, index: u64, batch: &[outlast_control::state::Envelope]) {
        self.cover.entries += 1;
        for envelope in batch {
            let (response, events) = self.checks.state.apply(index, envelope);
            if self.trace.is_on() {
                let text = format!("#{index} {:?} -> {response:?}", envelope.command);
                self.trace(|| text);
            }
            self.digest = (self.digest ^ index ^ events.len() as u64).wrapping_mul(0x0100_0000_01b3);
            self.applied_for_good(envelope, &response, &events);
        }
        if batch.is_empty() {
            self.checks.state.applied = index;
        }
    }

    /// Everything, now and then.
    pub(crate) fn check_in_full(&mut self) {
        if let Err(broken) = self.checks.state.check_invariants() {
            return self.fail("in the state", broken.join("; "));
        }
        self.inv_13_replicas_are_one_state();
        self.inv_20_nothing_is_given_twice_in_full();
        self.inv_32_sealed_bytes_are_where_the_log_says();
    }

    fn inv_13_replicas_are_one_state(&mut self) {
        let applied = self.checks.state.applied;
        let differs = |c: &usize| {
            let coord = &self.coords[*c];
            coord.up && coord.state.applied == applied && coord.state != self.checks.state
        };
        if let Some(c) = (0..self.coords.len()).find(differs) {
            self.fail(
                "13 apply is deterministic",
                format!("the state of c{} is another one at index {applied}", c + 1),
            );
        }
    }

    /// At a run's end.
    pub(crate) fn inv_13_a_replay_is_the_same_state(&mut self) {
        let mut replayed = ClusterState::new();
        let log = std::mem::take(&mut self.checks.log);
        for ((_, batch), index) in log.iter().zip(1..) {
            batch.iter().for_each(|envelope| drop(replayed.apply(index, envelope)));
            if batch.is_empty() {
                replayed.applied = index;
            }
        }
        self.checks.log = log;
        if replayed != self.checks.state {
            return self.fail("13 apply is deterministic", "a replay of the log is another state");
        }
        let there_and_back = decode_state(&encode_state(&replayed));
        if there_and_back.is_ok_and(|state| state == replayed) {
            return;
        }
        self.fail("13 apply is deterministic", "a snapshot is not the state that it was made of");
    }
}
