//! Proposals that are under way: each in the background with its own deadline, so that one that hangs holds up nothing
//! but its own subject; and no subject has two.

use std::collections::BTreeSet;

use outlast_control::plan::Subject;
use tokio::task::JoinSet;

/// Proposals under way at a time; the consensus batches them into few entries. More are planned anew by the next pass.
const PROPOSALS_MAX: usize = 512;

/// Dropping it ends every proposal.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    subjects: BTreeSet<Subject>,
    /// Each says whether its command was applied.
    proposals: JoinSet<(Subject, bool)>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// Whether a command about the subject may be proposed now.
    pub(super) fn has_room(&self, subject: &Subject) -> bool {
        self.subjects.len() < PROPOSALS_MAX && !self.subjects.contains(subject)
    }

    /// `proposal` must end by itself, and says whether the command was applied. Ask [`InFlight::has_room`] first.
    pub(super) fn begin(&mut self, subject: Subject, proposal: impl Future<Output = bool> + Send + 'static) {
        self.subjects.insert(subject.clone());
        self.proposals.spawn(async move { (subject, proposal.await) });
    }

    /// The next proposal that is answered: whether it was applied. Waits for ever where none is under way.
    pub(super) async fn answered(&mut self) -> bool {
        match self.proposals.join_next().await {
            Some(ended) => self.settle(ended),
            None => std::future::pending().await,
        }
    }

    /// One that is answered already.
    pub(super) fn try_answered(&mut self) -> Option<bool> {
        let ended = self.proposals.try_join_next()?;
        Some(self.settle(ended))
    }

    fn settle(&mut self, ended: Result<(Subject, bool), tokio::task::JoinError>) -> bool {
        match ended {
            Ok((subject, is_applied)) => {
                self.subjects.remove(&subject);
                is_applied
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use outlast_types::{GroupId, JobId};

    use super::*;

    fn group(job: u64) -> Subject {
        Subject::Group(GroupId { job: JobId(job), index: 0 })
    }

    #[tokio::test]
    async fn a_proposal_that_hangs_holds_up_its_own_subject_only() {
        let mut in_flight = InFlight::default();
        in_flight.begin(group(1), std::future::pending());
        in_flight.begin(group(2), async { true });
        assert!(in_flight.answered().await, "the second is not behind the first");
        assert!(!in_flight.has_room(&group(1)), "nothing is proposed twice");
        assert!(in_flight.has_room(&group(2)) && !in_flight.is_empty());
        assert_eq!(in_flight.try_answered(), None);
    }

    #[tokio::test]
    async fn a_proposal_that_failed_leaves_its_subject_free() {
        let mut in_flight = InFlight::default();
        in_flight.begin(group(1), async { false });
        assert!(!in_flight.answered().await);
        assert!(in_flight.has_room(&group(1)) && in_flight.is_empty());
    }

    #[tokio::test]
    async fn what_is_under_way_is_bounded() {
        let mut in_flight = InFlight::default();
        for job in 0..PROPOSALS_MAX as u64 {
            assert!(in_flight.has_room(&group(job)));
            in_flight.begin(group(job), std::future::pending());
        }
        assert!(!in_flight.has_room(&group(9_999)));
    }
}
