//! What only the leader does, for as long as it leads.
//!
//! ```text
//!  follower ──elected──► barrier proposed ──applied──► in office: leases + planner ──deposed──► follower
//!                          │ not the leader any more                                 (everything dropped)
//!                          └──────────────► follower
//! ```
//! An office is one incarnation: its index is that of its barrier entry. Its memory (leases, observations, conditions)
//! dies with it; a successor derives all work again from the state. The tasks run on the threads of Raft, apart from
//! the load of the API, and end at once when the office is dropped.

mod board;
mod changes;
mod in_flight;
mod lease_loop;
mod lost;
mod planner_loop;
mod seal;

use std::sync::{Arc, Weak};
use std::time::Duration;

use outlast_control::state::{Command, Incarnation, Response};
use outlast_proto::relay::v1::{RelayedGrant, RelayedHeartbeat};
use outlast_proto::status::Failure;
use outlast_types::{Actor, BootTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::clock::boot_now;
use crate::limits::{RETRY_PAUSE, TRY_DEADLINE};
use crate::member::{Member, no_leader};
use crate::propose::envelope;

pub(crate) use board::Board;

/// Batches of heartbeats that wait for a quorum round: each follower sends one at a time every few milliseconds, so
/// more than this means that rounds do not succeed, and agents send again anyway.
const CONFIRMS_MAX: usize = 256;
/// A batch is confirmed within this time or not at all: its agents have sent the next heartbeat by then.
const CONFIRM_DEADLINE: Duration = Duration::from_millis(1_000);

/// Heartbeats that were received together.
pub(crate) struct ConfirmRequest {
    pub(crate) heartbeats: Vec<RelayedHeartbeat>,
    /// Taken before the quorum round that confirms them begins (L1).
    pub(crate) received_at: BootTime,
    pub(crate) reply: oneshot::Sender<Vec<RelayedGrant>>,
}

/// One leader's time in office, as the services see it.
pub(crate) struct Office {
    pub(crate) board: Arc<Board>,
    confirms: mpsc::Sender<ConfirmRequest>,
}

impl Office {
    /// Grants for those of the heartbeats that a quorum round begun after this call confirms.
    pub(crate) async fn confirm(
        &self,
        heartbeats: Vec<RelayedHeartbeat>,
    ) -> Result<Vec<RelayedGrant>, Failure> {
        let (reply, grants) = oneshot::channel();
        let request = ConfirmRequest { heartbeats, received_at: boot_now(), reply };
        self.confirms.try_send(request).map_err(|_| no_leader())?;
        match tokio::time::timeout(CONFIRM_DEADLINE, grants).await {
            Ok(Ok(grants)) => Ok(grants),
            // No quorum, or out of office: nothing may be granted.
            Ok(Err(_)) | Err(_) => Err(no_leader()),
        }
    }
}

/// Follows the leadership until the member is gone.
pub(crate) async fn lead_when_elected(member: Weak<Member>) {
    let Some(mut leadership) = member.upgrade().map(|member| member.consensus.leadership()) else { return };
    loop {
        let (is_self, term) = {
            let now = leadership.borrow_and_update();
            (now.is_self, now.term)
        };
        if is_self {
            let Some(member) = member.upgrade() else { return };
            let closed = tokio::select! {
                changed = leadership.wait_for(|now| !now.is_self || now.term != term) => changed.is_err(),
                () = hold_office(&member, term) => false,
            };
            member.office.send_replace(None);
            tracing::info!(term, "out of office");
            if closed {
                return;
            }
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Never ends by itself, except where the barrier cannot be had any more. Dropping it ends the office.
async fn hold_office(member: &Arc<Member>, term: u64) {
    let Some(incarnation) = pass_barrier(member, term).await else { return };
    tracing::info!(term, index = incarnation.index, "in office");
    let board = Arc::new(Board::default());
    let (confirms, inbox) = mpsc::channel(CONFIRMS_MAX);
    let (soft, soft_inbox) = mpsc::channel(planner_loop::SOFT_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(lease_loop::run(member.clone(), incarnation, board.clone(), inbox, soft));
    tasks.spawn(planner_loop::run(member.clone(), incarnation, board.clone(), soft_inbox));
    tasks.spawn(changes::finish(member.clone()));
    member.office.send_replace(Some(Arc::new(Office { board, confirms })));
    // The tasks never end before the office does.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    std::future::pending::<()>().await;
}

/// Commits the entry that makes this incarnation (L2). Tries while this coordinator leads in the term.
async fn pass_barrier(member: &Arc<Member>, term: u64) -> Option<Incarnation> {
    loop {
        {
            let leadership = member.consensus.leadership();
            let now = leadership.borrow();
            if !now.is_self || now.term != term {
                return None;
            }
        }
        let barrier = envelope(Actor::System, None, None, Command::Barrier { coordinator: member.id });
        match member.propose_here(barrier, TRY_DEADLINE).await {
            Ok(decided) => match decided.response {
                Response::Barrier(incarnation) => return Some(incarnation),
                other => tracing::warn!(term, ?other, "the barrier was refused"),
            },
            Err(failure) => tracing::debug!(term, %failure, "the barrier is tried again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
