//! Orders in hand: begun once, ended once, forgotten when the log has them no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use outlast_control::state::ShardTask;
use outlast_proto::convert::ReportedDone;
use outlast_types::{BootTime, Millis};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{OrderKey, work};
use crate::assigned::ShardOrder;
use crate::context::Context;

/// Copies under way: two, so that one waits for the network while the other writes.
const COPIES_MAX: usize = 2;
/// Shards being read back: one, beside what training reads and writes.
const PROOFS_MAX: usize = 1;
/// Uploads under way: each sends several parts at a time by itself.
const UPLOADS_MAX: usize = 2;
/// An ended order that is still listed after this long was given again, or its end was lost: it is carried out again.
const AGAIN_MS: Millis = 20_000;

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    /// This node cannot do it: the log gives it to another one.
    Failed(String),
    /// The own copy is damaged or gone.
    Damaged(String),
    /// Not now: tried again.
    Later(String),
}

#[derive(Debug)]
enum State {
    Running(CancellationToken),
    Ended { at: BootTime, done: bool },
}

#[derive(Debug)]
pub(crate) struct Upkeep {
    orders: BTreeMap<OrderKey, State>,
    copies: Arc<Semaphore>,
    proofs: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
}

impl Upkeep {
    pub(crate) fn new() -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self {
            orders: BTreeMap::new(),
            copies: turns(COPIES_MAX),
            proofs: turns(PROOFS_MAX),
            uploads: turns(UPLOADS_MAX),
        }
    }

    /// Begins what is new and ends what is no longer wanted.
    pub(crate) fn reconcile(&mut self, context: &Arc<Context>, wanted: &[ShardOrder], now: BootTime) {
        let is_wanted = |key: &OrderKey| wanted.iter().any(|order| order.key == *key);
        self.orders.retain(|key, state| {
            let stays = is_wanted(key);
            if let (State::Running(stop), false) = (&*state, stays) {
                stop.cancel();
            }
            stays
        });
        for order in wanted {
            let is_due = match self.orders.get(&order.key) {
                None => true,
                Some(State::Running(_)) => false,
                Some(State::Ended { at, done }) => {
                    // A proof or an upload that is done is only said again.
                    let is_over = *done && order.key.task != ShardTask::Copy;
                    !is_over && now.since(*at) >= AGAIN_MS
                }
            };
            if is_due {
                self.begin(context, order.clone());
            }
        }
    }

    fn begin(&mut self, context: &Arc<Context>, order: ShardOrder) {
        let stop = context.shutdown.child_token();
        self.orders.insert(order.key, State::Running(stop.clone()));
        let turns = match order.key.task {
            ShardTask::Copy => Arc::clone(&self.copies),
            ShardTask::Prove => Arc::clone(&self.proofs),
            ShardTask::Store => Arc::clone(&self.uploads),
        };
        context.tasks.spawn(work::carry_out(Arc::clone(context), order, turns, stop));
    }

    /// What the tasks say at their end. `false`: the order is not in hand any more.
    pub(crate) fn ended(&mut self, key: &OrderKey, ended: &Ended, now: BootTime) -> bool {
        let Some(state) = self.orders.get_mut(key) else { return false };
        *state = State::Ended { at: now, done: *ended == Ended::Done };
        true
    }

    /// Proofs and uploads that are done, for the heartbeat.
    pub(crate) fn done(&self) -> Vec<ReportedDone> {
        let done = self.orders.iter().filter(|(key, state)| {
            matches!(state, State::Ended { done: true, .. }) && key.task != ShardTask::Copy
        });
        let report = |key: &OrderKey| ReportedDone {
            attempt: key.shard.attempt,
            seq: key.shard.seq,
            rank: key.shard.rank,
            task: key.task,
        };
        done.map(|(key, _)| report(key)).collect()
    }
}
