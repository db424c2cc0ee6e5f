//! What a planned command decides about. The shell proposes one command of a subject at a time; so does the simulation.

use outlast_types::{CheckpointSeq, GroupId, JobId, NodeId};

use crate::state::Command;

/// What a planned command decides about. Of one subject one command at a time: the next decision follows from the state
/// that the first one made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Group(GroupId),
    Checkpoint(JobId, CheckpointSeq),
    Job(JobId),
    Node(NodeId),
}

impl Subject {
    /// `None`: nothing that a plan holds.
    pub fn of(command: &Command) -> Option<Self> {
        Some(match command {
            Command::StartAttempt { group, .. }
            | Command::GiveUp { group, .. }
            | Command::SetInterval { group, .. } => Subject::Group(*group),
            Command::StopAttempt { attempt, .. }
            | Command::EndAttempt { attempt, .. }
            | Command::RequestCheckpoint { attempt, .. } => Subject::Group(attempt.group),
            Command::SealCheckpoint { job, seq, .. }
            | Command::AbortCheckpoint { job, seq, .. }
            | Command::RetireCheckpoint { job, seq, .. }
            | Command::QuarantineCheckpoint { job, seq, .. }
            | Command::OrderShards { job, seq, .. }
            | Command::ProveCheckpoint { job, seq, .. }
            | Command::StoreCheckpoint { job, seq, .. } => Subject::Checkpoint(*job, *seq),
            Command::ExpireJob { job, .. } => Subject::Job(*job),
            Command::QuarantineNode { node, .. } => Subject::Node(node.clone()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_about_one_group_have_one_subject() {
        let attempt: outlast_types::AttemptId = "j1/0@1.2".parse().expect("valid");
        let incarnation =
            crate::state::Incarnation { index: 1, coordinator: outlast_types::CoordinatorId(1) };
        let end = Command::EndAttempt { attempt, incarnation };
        let give_up = Command::GiveUp { group: attempt.group, reason: String::new(), incarnation };
        let seal = Command::RetireCheckpoint { job: JobId(1), seq: CheckpointSeq(2), incarnation: None };
        assert_eq!(
            (Subject::of(&end), Subject::of(&give_up)),
            (Some(Subject::Group(attempt.group)), Some(Subject::Group(attempt.group)))
        );
        assert_eq!(Subject::of(&seal), Some(Subject::Checkpoint(JobId(1), CheckpointSeq(2))));
    }
}
