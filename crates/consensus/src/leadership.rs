//! Who leads, as openraft's metrics say it, and how fresh the leader's quorum is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use openraft::ServerState;
use openraft::error::Fatal;
use outlast_types::{CoordinatorId, Millis};
use tokio::sync::watch;

use crate::clock::boot_now;
use crate::fatal::FatalHook;
use crate::types::Metrics;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub id: CoordinatorId,
    /// `host:port`.
    pub address: String,
}

/// Changes when the term or the leader does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    pub leader: Option<Leader>,
    pub term: u64,
    /// This coordinator leads. It may not know yet that another one has been elected: only a quorum round tells. Never
    /// while its own disk is in the way and others could take over, whatever Raft still calls it.
    pub is_self: bool,
}

/// What this coordinator's own disk means for its leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    Fit,
    /// An operation of the log does not end.
    DiskHangs,
    /// The disk is nearly full, and somebody with room is to take over.
    GivesWay,
}

impl Leadership {
    fn of(metrics: &Metrics, fitness: Fitness) -> Self {
        if fitness != Fitness::Fit && metrics.current_leader == Some(metrics.id) && others_vote(metrics) {
            return Self { leader: None, term: metrics.current_term, is_self: false };
        }
        let leader = metrics.current_leader.and_then(|id| {
            let node = metrics.membership_config.membership().get_node(&id)?;
            Some(Leader { id: CoordinatorId(id), address: node.addr.clone() })
        });
        let is_self = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
        Self { leader, term: metrics.current_term, is_self }
    }
}

/// Whether somebody else could lead.
pub(crate) fn others_vote(metrics: &Metrics) -> bool {
    metrics.membership_config.membership().voter_ids().any(|id| id != metrics.id)
}

/// When a quorum last answered this leader, on the boot clock.
#[derive(Debug, Default)]
pub(crate) struct QuorumClock {
    acked_at_ms: AtomicU64,
}

impl QuorumClock {
    /// How long ago a quorum answered; counted from the election where none has yet.
    pub(crate) fn age_ms(&self) -> Millis {
        boot_now().0.saturating_sub(self.acked_at_ms.load(Ordering::Relaxed))
    }

    fn acked(&self, ago_ms: Millis) {
        self.acked_at_ms.store(boot_now().0.saturating_sub(ago_ms), Ordering::Relaxed);
    }
}

/// Follows the metrics until the Raft core ends. Any end that nobody asked for is the end of the process.
pub(crate) async fn follow(
    mut metrics: watch::Receiver<Metrics>,
    mut fitness: watch::Receiver<Fitness>,
    leadership: watch::Sender<Leadership>,
    quorum: Arc<QuorumClock>,
    fatal: FatalHook,
    stopped: Arc<AtomicBool>,
) {
    loop {
        let fit = *fitness.borrow_and_update();
        // The guard must not live across an await: openraft's core would wait for it.
        let (now, acked_ago, running) = {
            let metrics = metrics.borrow_and_update();
            (Leadership::of(&metrics, fit), metrics.millis_since_quorum_ack, metrics.running_state.clone())
        };
        match running {
            Err(Fatal::Stopped) => break,
            // Being closed: what the core meets then is our own doing.
            Err(_) if stopped.load(Ordering::SeqCst) => break,
            Err(err) => {
                fatal.die(&format!("the Raft core failed: {}", crate::fatal::chain(&err)));
                break;
            }
            Ok(()) => {}
        }
        let newly_leader = now.is_self && !leadership.borrow().is_self;
        match acked_ago {
            Some(ago) => quorum.acked(ago),
            None if newly_leader => quorum.acked(0),
            None => {}
        }
        leadership.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                tracing::info!(term = now.term, leader = ?now.leader, is_self = now.is_self, "leadership changed");
                *before = now;
            }
            changed
        });
        // The core's metrics stand still while it waits for its disk.
        let changed = tokio::select! {
            changed = metrics.changed() => changed,
            changed = fitness.changed() => changed,
        };
        if changed.is_err() {
            break;
        }
    }
    leadership.send_modify(|leadership| {
        *leadership = Leadership { leader: None, term: leadership.term, is_self: false }
    });
}
