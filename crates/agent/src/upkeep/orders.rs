//! Orders in hand: begun once, ended once, forgotten when the log has them no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outlast_blobs::ShardKey;
use outlast_control::state::ShardTask;
use outlast_proto::convert::ReportedDone;
use outlast_types::{BootTime, Digest, Millis};
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
/// A proof that fails again and again without damage waits twice as long each time, up to this.
const PROVE_AGAIN_MS_MAX: Millis = 10 * 60_000;

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
    /// With how often it has failed before.
    Running(CancellationToken, u32),
    Ended {
        at: BootTime,
        done: bool,
        failures: u32,
    },
}

/// When an order that has ended, and is still there, is carried out again.
fn again_ms(task: ShardTask, failures: u32) -> Millis {
    match task {
        ShardTask::Prove => {
            AGAIN_MS.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PROVE_AGAIN_MS_MAX)
        }
        ShardTask::Copy | ShardTask::Store => AGAIN_MS,
    }
}

#[derive(Debug)]
pub(crate) struct Upkeep {
    orders: BTreeMap<OrderKey, State>,
    /// Own copies that somebody called bad, while they are looked at again.
    looks: BTreeSet<(ShardKey, Digest)>,
    copies: Arc<Semaphore>,
    proofs: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
}

impl Upkeep {
    pub(crate) fn new() -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self {
            orders: BTreeMap::new(),
            looks: BTreeSet::new(),
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
            if let (State::Running(stop, _), false) = (&*state, stays) {
                stop.cancel();
            }
            stays
        });
        for order in wanted {
            let task = order.key.task;
            match self.orders.get(&order.key) {
                None => self.begin(context, order.clone(), 0),
                Some(State::Running(..)) => {}
                // A proof or an upload that is done is only said again.
                Some(State::Ended { done: true, .. }) if task != ShardTask::Copy => {}
                Some(State::Ended { at, failures, .. }) => {
                    let failures = *failures;
                    if now.since(*at) >= again_ms(task, failures) {
                        self.begin(context, order.clone(), failures);
                    }
                }
            }
        }
    }

    fn begin(&mut self, context: &Arc<Context>, order: ShardOrder, failures: u32) {
        let stop = context.shutdown.child_token();
        self.orders.insert(order.key, State::Running(stop.clone(), failures));
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
        let before = match state {
            State::Running(_, failures) | State::Ended { failures, .. } => *failures,
        };
        let done = *ended == Ended::Done;
        let failures = if done { 0 } else { before.saturating_add(1) };
        *state = State::Ended { at: now, done, failures };
        true
    }

    /// `false`: it is being looked at already. A second look that began with the first could end after the copy that
    /// takes its place has come, and set that aside.
    pub(crate) fn begin_look(&mut self, shard: ShardKey, root: Digest) -> bool {
        self.looks.insert((shard, root))
    }

    pub(crate) fn end_look(&mut self, shard: ShardKey, root: Digest) {
        self.looks.remove(&(shard, root));
    }

    /// The own copy is gone: what was done with it says nothing of the one that may come after it.
    pub(crate) fn forget(&mut self, shard: &ShardKey, root: Digest) {
        self.orders.retain(|key, state| {
            let is_of_it = (&key.shard, key.root) == (shard, root);
            !(is_of_it && matches!(state, State::Ended { done: true, .. }))
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_two_called_bad_is_looked_at_once() {
        let mut upkeep = Upkeep::new();
        let attempt = "j1/0@1.1".parse().expect("an id");
        let shard =
            ShardKey { job: outlast_types::JobId(1), attempt, seq: outlast_types::CheckpointSeq(1), rank: 0 };
        let (root, other) = (Digest([1; 32]), Digest([2; 32]));
        assert!(upkeep.begin_look(shard, root) && upkeep.begin_look(shard, other));
        assert!(!upkeep.begin_look(shard, root));
        upkeep.end_look(shard, root);
        assert!(upkeep.begin_look(shard, root), "it may be bad again");
    }

    #[test]
    fn a_proof_that_fails_again_and_again_waits_longer_up_to_a_cap_and_an_upload_does_not() {
        let waits: Vec<Millis> =
            (1..=7).map(|failures| again_ms(ShardTask::Prove, failures) / 1_000).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(again_ms(ShardTask::Prove, u32::MAX), PROVE_AGAIN_MS_MAX);
        assert_eq!(again_ms(ShardTask::Store, 9), AGAIN_MS, "the store may be back at any moment");
    }
}
