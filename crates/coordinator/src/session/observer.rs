//! An agent's observations on their way into the log: in order, and acknowledged only when applied.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{Command, Observation, Refusal, Response};
use outlast_types::{Actor, NodeId, RegistrationId};
use tokio::sync::mpsc;

use crate::clock::Deadline;
use crate::member::Member;
use crate::propose::envelope;

/// Batches that wait for the one in hand. The agent resends whatever is not acknowledged, so a full queue loses nothing.
pub(super) const BATCHES_MAX: usize = 8;
const DEADLINE: Duration = Duration::from_secs(5);

/// Observations `first..` of the session's registration.
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) observations: Vec<Observation>,
}

pub(super) enum Outcome {
    /// Everything up to this number is applied.
    Applied(u64),
    /// The registration is over: nothing that it says counts any more.
    Stale(String),
}

/// Proposes batch after batch until the session is gone.
pub(super) async fn run(
    member: Arc<Member>,
    node: NodeId,
    registration: RegistrationId,
    source: Option<String>,
    mut batches: mpsc::Receiver<Batch>,
    outcomes: mpsc::Sender<Outcome>,
) {
    while let Some(Batch { first, observations }) = batches.recv().await {
        let command = Command::Observe { node: node.clone(), registration, first, observations };
        let envelope = envelope(Actor::Agent(node.clone()), source.clone(), None, command);
        let deadline = Deadline::after(DEADLINE);
        let outcome = match member.decide(envelope, deadline).await {
            Ok(decided) => match read_response(&node, decided.response) {
                // Why it is over is told from the own state, which has to know it first.
                Some(Outcome::Stale(_)) if member.wait_applied(decided.index, deadline).await.is_err() => {
                    None
                }
                outcome => outcome,
            },
            Err(failure) => {
                tracing::debug!(%node, first, %failure, "observations were not applied; the agent sends them again");
                None
            }
        };
        if let Some(outcome) = outcome
            && outcomes.send(outcome).await.is_err()
        {
            return;
        }
    }
}

fn read_response(node: &NodeId, response: Response) -> Option<Outcome> {
    match response {
        Response::Observed(number) => Some(Outcome::Applied(number)),
        Response::Refused(refusal @ (Refusal::Fenced { .. } | Refusal::NotFound { .. })) => {
            Some(Outcome::Stale(refusal.to_string()))
        }
        Response::Refused(Refusal::Conflict { reason }) => {
            // An earlier batch was dropped here; the agent sends everything that is not acknowledged.
            tracing::debug!(%node, reason, "observations came out of turn");
            None
        }
        other => {
            tracing::warn!(%node, ?other, "observations were refused");
            None
        }
    }
}
