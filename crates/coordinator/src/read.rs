//! Linearizable reads: one quorum round answers every read that was waiting when it began.

use std::sync::{Arc, Weak};
use std::time::Duration;

use outlast_proto::relay::v1::ReadIndexRequest;
use outlast_proto::status::Failure;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Deadline;
use crate::limits::RETRY_PAUSE;
use crate::member::{Member, no_leader, stopping};
use crate::peers::call;

/// Reads that wait for a round; more are told to come back.
const WAITING_MAX: usize = 4_096;
/// One round. A healthy one takes a network round trip; a leader without a quorum does not answer at all.
const ROUND_DEADLINE: Duration = Duration::from_millis(1_000);

type Answer = oneshot::Sender<Result<u64, Failure>>;

/// The handle; the actor is [`serve`].
pub(crate) struct ReadGate {
    waiting: mpsc::Sender<Answer>,
}

pub(crate) struct ReadGateInbox(mpsc::Receiver<Answer>);

impl ReadGate {
    pub(crate) fn new() -> (Self, ReadGateInbox) {
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, ReadGateInbox(inbox))
    }

    /// An index that every state must have applied which answers for this moment. Tries until the deadline.
    pub(crate) async fn confirm(&self, deadline: Deadline) -> Result<u64, Failure> {
        loop {
            let failure = match tokio::time::timeout(deadline.left(), self.confirm_once()).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(unconfirmed()),
            };
            if !failure.is_retryable() || deadline.left() <= RETRY_PAUSE {
                return Err(failure);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    pub(crate) async fn confirm_once(&self) -> Result<u64, Failure> {
        let (answer, outcome) = oneshot::channel();
        self.waiting.try_send(answer).map_err(|_| Failure::Exhausted {
            reason: "too many reads wait for their confirmation".to_owned(),
            hint: "try again".to_owned(),
            retry_after_ms: 200,
        })?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn unconfirmed() -> Failure {
    Failure::Unavailable {
        reason: "the read could not be confirmed in time: this coordinator may be cut off from the others"
            .to_owned(),
        hint: "ask another coordinator, or look at `outlast cluster status`".to_owned(),
        retry_after_ms: 500,
    }
}

/// Answers reads until the member is gone.
pub(crate) async fn serve(member: Weak<Member>, ReadGateInbox(mut inbox): ReadGateInbox) {
    while let Some(first) = inbox.recv().await {
        let Some(member) = member.upgrade() else { return };
        let mut round = vec![first];
        while let Ok(next) = inbox.try_recv() {
            round.push(next);
        }
        let outcome = confirm_round(&member).await;
        for answer in round {
            // Whoever does not wait any more needs no answer.
            let _ = answer.send(outcome.clone());
        }
    }
}

async fn confirm_round(member: &Arc<Member>) -> Result<u64, Failure> {
    if member.leads() {
        return local_round(member).await;
    }
    let address = member.other_leader().ok_or_else(no_leader)?;
    let request = ReadIndexRequest { cluster_id: member.cluster_id.to_string() };
    let response = call(ROUND_DEADLINE, member.peers.relay(&address)?.read_index(request)).await?;
    Ok(response.index)
}

async fn local_round(member: &Arc<Member>) -> Result<u64, Failure> {
    // A leader that was restarted leads on in its old term, with what it remembers as committed, which may be less than
    // it has acknowledged: only its barrier shows that everything before is committed.
    if member.office().is_none() {
        return Err(no_leader());
    }
    match tokio::time::timeout(ROUND_DEADLINE, member.consensus.quorum_round()).await {
        Ok(Ok(index)) => Ok(index),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a quorum round failed");
            Err(no_leader())
        }
        Err(_) => Err(unconfirmed()),
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use crate::{Coordinator, CoordinatorConfig};

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_16_no_read_is_confirmed_before_the_barrier() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = CoordinatorConfig {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            disk_load_test: false,
            init: true,
            ..CoordinatorConfig::default()
        };
        let running = Coordinator::start(config, CancellationToken::new()).await.expect("it starts");
        let member = running.seat.member().expect("it founded a cluster");
        let mut office = member.office.subscribe();
        office.wait_for(Option::is_some).await.expect("it leads");
        member.reads.confirm_once().await.expect("confirmed in office");

        // As after a restart: Raft has it as the leader, and its barrier is not yet committed.
        let before = member.office.send_replace(None);
        let refused = member.reads.confirm_once().await.expect_err("not confirmed");
        assert!(member.leads() && refused.is_retryable(), "{refused}");
        member.office.send_replace(before);
        member.reads.confirm_once().await.expect("confirmed again");
    }
}
