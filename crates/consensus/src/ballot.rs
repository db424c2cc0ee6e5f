//! A vote as it is kept on disk and sent: openraft's vote without openraft's types.

use openraft::LeaderId;
use serde::{Deserialize, Serialize};

use crate::types::Vote;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ballot {
    pub term: u64,
    pub voted_for: Option<u64>,
    pub committed: bool,
}

impl Ballot {
    /// Whether `self` can follow `earlier` on one node: votes only ever grow (invariant 7).
    pub fn follows(&self, earlier: &Self) -> bool {
        if self.term != earlier.term {
            return self.term > earlier.term;
        }
        let same_leader = earlier.voted_for.is_none() || self.voted_for == earlier.voted_for;
        // A committed vote of another leader replaces an uncommitted one of the same term.
        (same_leader && self.committed >= earlier.committed) || (self.committed && !earlier.committed)
    }
}

impl From<&Vote> for Ballot {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        let leader_id = LeaderId { term: ballot.term, voted_for: ballot.voted_for };
        Self { leader_id, committed: ballot.committed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_may_grow_but_never_shrink_or_change_hands() {
        let vote = |term, voted_for, committed| Ballot { term, voted_for: Some(voted_for), committed };
        assert!(vote(2, 1, false).follows(&vote(1, 3, true)));
        assert!(vote(2, 1, true).follows(&vote(2, 1, false)));
        assert!(vote(2, 3, true).follows(&vote(2, 1, false)));
        assert!(!vote(2, 3, false).follows(&vote(2, 1, false)));
        assert!(!vote(2, 1, false).follows(&vote(2, 1, true)));
        assert!(!vote(1, 1, true).follows(&vote(2, 1, false)));
    }
}
