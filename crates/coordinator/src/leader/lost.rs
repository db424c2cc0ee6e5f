//! `NodeLost` on its way into the log: tried until it is applied or refused, by this office only.

use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{Command, Envelope, Incarnation, Response};
use outlast_types::{Actor, Millis, NodeId, RegistrationId};

use crate::clock::wall_now;
use crate::limits::TRY_DEADLINE;
use crate::member::Member;

/// The lease is over and never renewed again, so giving up would leave the node half alive: a try each 50 ms for
/// longer than any office without a quorum lasts.
const TRIES_MAX: u32 = 2_000;
const PAUSE: Duration = Duration::from_millis(50);

/// Gets the loss of the node into the log.
pub(super) async fn declare(
    member: Arc<Member>,
    node: NodeId,
    registration: RegistrationId,
    incarnation: Incarnation,
    silent_ms: Millis,
) {
    let command = Command::NodeLost { node: node.clone(), registration, incarnation };
    let cause = Some(format!("no heartbeat was confirmed for {:.1} s", silent_ms as f64 / 1_000.0));
    for _ in 0..TRIES_MAX {
        let envelope = Envelope {
            request: None,
            actor: Actor::System,
            source: None,
            cause: cause.clone(),
            at: wall_now(),
            command: command.clone(),
        };
        match member.propose_here(envelope, TRY_DEADLINE).await {
            Ok(decided) => {
                match decided.response {
                    Response::Refused(refusal) => tracing::debug!(%node, %refusal, "a loss was refused"),
                    _ => tracing::warn!(%node, index = decided.index, "node lost"),
                }
                return;
            }
            Err(failure) => tracing::debug!(%node, %failure, "a loss is tried again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    tracing::error!(%node, "the loss of a node could not be written into the log");
}
