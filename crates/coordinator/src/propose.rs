//! The way of a change into the log: proposed here where this coordinator leads, passed on to the leader elsewhere.
//!
//! Everything that takes this way is idempotent (a request id, a registration, an observation's number), so a try whose
//! outcome is unknown may be repeated until the deadline.

use std::time::Duration;

use outlast_consensus::ProposeError;
use outlast_control::state::{Command, Envelope, Response, decode_response, encode_batch};
use outlast_proto::relay::v1::{ProposeRequest, ProposeResponse};
use outlast_proto::status::Failure;
use outlast_types::{Actor, RequestId};

use crate::clock::{Deadline, wall_now};
use crate::limits::{RETRY_PAUSE, TRY_DEADLINE};
use crate::member::{Member, no_leader, stopping};
use crate::peers::call;

/// An applied command.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) index: u64,
    pub(crate) response: Response,
}

pub(crate) fn envelope(
    actor: Actor,
    source: Option<String>,
    request: Option<RequestId>,
    command: Command,
) -> Envelope {
    Envelope { request, actor, source, cause: None, at: wall_now(), command }
}

/// Whether a follower may pass the command on. What only the leader (or nobody but the consensus itself) may propose
/// never travels: a deposed leader must not be able to act through its successor (L4 of the lease protocol).
pub(crate) fn may_travel(command: &Command) -> bool {
    match command {
        Command::AddCoordinator { .. }
        | Command::AnnounceCoordinator { .. }
        | Command::RaiseFeatureLevel { .. }
        | Command::RegisterNode(_)
        | Command::CordonNode { .. }
        | Command::UncordonNode { .. }
        | Command::DrainNode { .. }
        | Command::LabelNode { .. }
        | Command::Observe { .. }
        | Command::SubmitJob { .. }
        | Command::CancelJob { .. }
        | Command::OpenCheckpoint { .. }
        | Command::PinCheckpoint { .. } => true,
        Command::InitCluster { .. }
        | Command::OpenGeneration { .. }
        | Command::Barrier { .. }
        | Command::RemoveCoordinator { .. }
        | Command::NodeLost { .. }
        | Command::QuarantineNode { .. }
        | Command::ExpireJob { .. }
        | Command::StartAttempt { .. }
        | Command::StopAttempt { .. }
        | Command::EndAttempt { .. }
        | Command::RequestCheckpoint { .. }
        | Command::GiveUp { .. }
        | Command::SealCheckpoint { .. }
        | Command::AbortCheckpoint { .. }
        | Command::RetireCheckpoint { .. }
        | Command::QuarantineCheckpoint { .. }
        | Command::OrderShards { .. }
        | Command::SetInterval { .. }
        | Command::ProveCheckpoint { .. }
        | Command::StoreCheckpoint { .. } => false,
    }
}

impl Member {
    /// Gets the command applied, by whoever leads, and waits until this coordinator has applied it too. A refusal of
    /// the state is a failure of its class.
    pub(crate) async fn change(&self, envelope: Envelope, within: Duration) -> Result<Decided, Failure> {
        let deadline = Deadline::after(within);
        let decided = self.decide(envelope, deadline).await?;
        if let Response::Refused(refusal) = decided.response {
            return Err(refusal.into());
        }
        // The change is made: a slow follower shows an older state, but does not call it failed.
        if self.wait_applied(decided.index, deadline).await.is_err() {
            tracing::debug!(index = decided.index, "answered before the change was applied here");
        }
        Ok(decided)
    }

    /// Gets the command applied; the answer as the state gave it.
    pub(crate) async fn decide(&self, envelope: Envelope, deadline: Deadline) -> Result<Decided, Failure> {
        loop {
            let outcome = self.decide_once(&envelope, deadline).await;
            match outcome {
                Err(failure @ (Failure::Unavailable { .. } | Failure::Unknown { .. })) => {
                    if deadline.left() <= RETRY_PAUSE || self.shutdown.is_cancelled() {
                        return Err(failure);
                    }
                    tracing::debug!(%failure, "a change is tried again");
                    self.pause_for_leader().await;
                }
                other => return other,
            }
        }
    }

    async fn decide_once(&self, envelope: &Envelope, deadline: Deadline) -> Result<Decided, Failure> {
        let within = deadline.left_at_most(TRY_DEADLINE);
        if self.leads() {
            return self.propose_here(envelope.clone(), within).await;
        }
        let address = self.other_leader().ok_or_else(no_leader)?;
        let request = ProposeRequest {
            cluster_id: self.cluster_id.to_string(),
            envelope: encode_batch(std::slice::from_ref(envelope)),
        };
        let ProposeResponse { index, response } =
            call(within, self.peers.relay(&address)?.propose(request)).await?;
        let response = decode_response(&response)
            .map_err(|error| Failure::Fatal { reason: format!("the leader answered with {error}") })?;
        Ok(Decided { index, response })
    }

    /// Proposes where this coordinator leads, and nowhere else.
    pub(crate) async fn propose_here(
        &self,
        envelope: Envelope,
        within: Duration,
    ) -> Result<Decided, Failure> {
        match tokio::time::timeout(within, self.consensus.propose(envelope)).await {
            Ok(Ok(applied)) => Ok(Decided { index: applied.index, response: applied.response }),
            Ok(Err(error)) => Err(propose_failure(error)),
            Err(_) => Err(unknown(format!("the change was not applied within {} ms", within.as_millis()))),
        }
    }

    /// Until the leader changes, or a little while.
    pub(crate) async fn pause_for_leader(&self) {
        let mut leadership = self.consensus.leadership();
        leadership.mark_unchanged();
        let _ = tokio::time::timeout(RETRY_PAUSE, leadership.changed()).await;
    }
}

fn unknown(reason: String) -> Failure {
    Failure::Unknown { reason, hint: "repeat it: the same request id changes nothing twice".to_owned() }
}

fn propose_failure(error: ProposeError) -> Failure {
    match error {
        ProposeError::NotLeader { .. } => no_leader(),
        ProposeError::Busy { retry_after_ms } => Failure::Exhausted {
            reason: "the leader has more changes in hand than it takes at a time".to_owned(),
            hint: format!("try again in {retry_after_ms} ms"),
            retry_after_ms,
        },
        ProposeError::TooLarge { size, max } => Failure::Rejected {
            reason: format!("the change has {size} bytes; one entry of the log takes {max}"),
            hint: "make the job file smaller: large files belong into the bundle".to_owned(),
        },
        error @ ProposeError::DiskFull { .. } => Failure::Exhausted {
            reason: error.to_string(),
            hint: "make room on the leader's disk".to_owned(),
            retry_after_ms: 5_000,
        },
        ProposeError::Unknown => unknown("whether the change took effect is not known".to_owned()),
        ProposeError::Stopped => stopping(),
    }
}

#[cfg(test)]
mod tests {
    use outlast_control::state::Incarnation;
    use outlast_types::{CoordinatorId, NodeId, RegistrationId};

    use super::*;

    #[test]
    fn what_only_the_leader_may_say_does_not_travel() {
        let incarnation = Incarnation { index: 1, coordinator: CoordinatorId(1) };
        let node = NodeId::new("n1").expect("valid");
        let lost = Command::NodeLost { node: node.clone(), registration: RegistrationId(1), incarnation };
        assert!(!may_travel(&lost));
        assert!(!may_travel(&Command::Barrier { coordinator: CoordinatorId(1) }));
        assert!(may_travel(&Command::CordonNode { node }));
    }
}
