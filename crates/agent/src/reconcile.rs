//! What to do about the difference between what is wanted and what runs. Pure.
//!
//! The rules (design section 2): an agent never goes back, only an explicit stop stops, nothing starts without a lease
//! and a stream that has reached the grant, and an attempt starts only when its predecessors are gone from this node.

use std::collections::BTreeMap;

use outlast_types::{AttemptId, GroupId, Millis};

use crate::assigned::{Assigned, Desired, WorkerKey};

/// Where a worker that this agent knows is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    Running,
    /// Told to stop, with this grace.
    Stopping {
        grace_ms: Millis,
    },
    /// Nothing of it is alive, and it will never start.
    Over,
}

impl Life {
    /// It may go on for a while, so that a kill changes something.
    pub(crate) fn may_be_killed(self) -> bool {
        match self {
            Life::Starting | Life::Running => true,
            Life::Stopping { grace_ms } => grace_ms > 0,
            Life::Over => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Boxed: the other actions are small.
    Start(Box<Assigned>),
    Stop {
        key: WorkerKey,
        grace_ms: Millis,
        why: StopReason,
    },
    /// It never started here, and never will: say so.
    Forswear(WorkerKey),
    /// The cluster knows of a run that this agent does not have: say that it is over.
    Disown(WorkerKey),
    /// News for a worker that goes on (rendezvous, checkpoint wanted, peers).
    Update(Box<Assigned>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Wanted,
    /// A newer attempt of its group exists.
    Superseded,
    /// The first desired state of a new registration does not hold it: its assignment is gone from the log.
    Unconfirmed,
}

/// The newest attempt of each group that was ever named here.
#[derive(Debug, Default)]
pub(crate) struct NewestAttempts(BTreeMap<GroupId, AttemptId>);

/// Groups remembered; forgetting the oldest only costs a check that the log makes anyway.
const GROUPS_MAX: usize = 4_096;

impl NewestAttempts {
    pub(crate) fn saw(&mut self, attempt: AttemptId) {
        let newest = self.0.entry(attempt.group).or_insert(attempt);
        if attempt.is_newer_than(newest) {
            *newest = attempt;
        }
        if self.0.len() > GROUPS_MAX {
            self.0.pop_first();
        }
    }

    /// Whether a newer attempt of its group is known.
    pub(crate) fn supersedes(&self, attempt: &AttemptId) -> bool {
        self.0.get(&attempt.group).is_some_and(|newest| newest.is_newer_than(attempt))
    }
}

/// What besides the desired state counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The lease allows a start, and the desired state has reached the newest grant.
    pub(crate) may_start: bool,
    /// This is the first desired state of a new registration: running workers that it does not hold are stopped. The
    /// adoption bound only those whose assignment the log still held; the rest belongs to attempts that are over.
    pub(crate) first_of_registration: bool,
}

pub(crate) fn reconcile(
    desired: &Desired,
    known: &BTreeMap<WorkerKey, Life>,
    newest: &NewestAttempts,
    terms: Terms,
) -> Vec<Action> {
    let wanted: BTreeMap<WorkerKey, &Assigned> =
        desired.workers.iter().map(|worker| (worker.key, worker)).collect();
    let mut actions: Vec<Action> =
        known.iter().filter_map(|(key, life)| unasked_stop(*key, *life, &wanted, newest, terms)).collect();
    for worker in &desired.workers {
        actions.extend(one(worker, known, newest, terms));
    }
    actions
}

/// Stops that no `stop` in the desired state asks for.
fn unasked_stop(
    key: WorkerKey,
    life: Life,
    wanted: &BTreeMap<WorkerKey, &Assigned>,
    newest: &NewestAttempts,
    terms: Terms,
) -> Option<Action> {
    if !life.may_be_killed() {
        return None;
    }
    if newest.supersedes(&key.attempt) {
        return Some(Action::Stop { key, grace_ms: 0, why: StopReason::Superseded });
    }
    let unconfirmed = terms.first_of_registration && !wanted.contains_key(&key);
    unconfirmed.then_some(Action::Stop { key, grace_ms: 0, why: StopReason::Unconfirmed })
}

fn one(
    worker: &Assigned,
    known: &BTreeMap<WorkerKey, Life>,
    newest: &NewestAttempts,
    terms: Terms,
) -> Option<Action> {
    let key = worker.key;
    let stop = |grace_ms| Action::Stop { key, grace_ms, why: StopReason::Wanted };
    match (known.get(&key), worker.stop) {
        (Some(Life::Over), _) => None,
        // Superseded ones are dealt with, and need no second stop.
        (Some(_), _) if newest.supersedes(&key.attempt) => None,
        (Some(Life::Starting | Life::Running), Some(grace_ms)) => Some(stop(grace_ms)),
        // A kill may follow a request to end.
        (Some(Life::Stopping { grace_ms: old }), Some(new)) => (new < *old).then(|| stop(new)),
        (Some(Life::Stopping { .. }), None) => None,
        (Some(Life::Starting | Life::Running), None) => Some(Action::Update(Box::new(worker.clone()))),
        (None, Some(_)) => Some(Action::Forswear(key)),
        (None, None) if newest.supersedes(&key.attempt) => Some(Action::Forswear(key)),
        (None, None) if !worker.may_start => Some(Action::Disown(key)),
        (None, None) => {
            let waits = !terms.may_start || predecessor_alive(&key, known);
            (!waits).then(|| Action::Start(Box::new(worker.clone())))
        }
    }
}

fn predecessor_alive(key: &WorkerKey, known: &BTreeMap<WorkerKey, Life>) -> bool {
    known.iter().any(|(other, life)| *life != Life::Over && key.attempt.is_newer_than(&other.attempt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assigned::sample;

    const FREE: Terms = Terms { may_start: true, first_of_registration: false };

    fn key(attempt: &str) -> WorkerKey {
        sample(attempt, 0).key
    }

    /// `wanted` and `known` as short tables; each wanted worker with its stop grace.
    fn run(wanted: &[(&str, Option<u64>)], known: &[(&str, Life)], terms: Terms) -> Vec<Action> {
        let worker = |(attempt, stop): &(&str, Option<u64>)| Assigned { stop: *stop, ..sample(attempt, 0) };
        let desired = Desired { index: 9, workers: wanted.iter().map(worker).collect(), orders: Vec::new() };
        let mut newest = NewestAttempts::default();
        let known: BTreeMap<_, _> = known.iter().map(|(attempt, life)| (key(attempt), *life)).collect();
        desired
            .workers
            .iter()
            .map(|worker| worker.key)
            .chain(known.keys().copied())
            .for_each(|k| newest.saw(k.attempt));
        reconcile(&desired, &known, &newest, terms)
    }

    fn stop(attempt: &str, grace_ms: u64, why: StopReason) -> Action {
        Action::Stop { key: key(attempt), grace_ms, why }
    }

    const A1: &str = "j1/0@1.1";
    const A2: &str = "j1/0@1.2";

    #[test]
    fn an_unknown_worker_starts_only_with_a_lease() {
        assert_eq!(run(&[(A1, None)], &[], FREE), [Action::Start(Box::new(sample(A1, 0)))]);
        assert_eq!(run(&[(A1, None)], &[], Terms { may_start: false, ..FREE }), []);
    }

    #[test]
    fn absence_never_stops_and_an_explicit_stop_does() {
        assert_eq!(run(&[], &[(A1, Life::Running)], FREE), []);
        assert_eq!(
            run(&[(A1, Some(500))], &[(A1, Life::Running)], FREE),
            [stop(A1, 500, StopReason::Wanted)]
        );
        assert_eq!(
            run(&[(A1, Some(500))], &[(A1, Life::Starting)], FREE),
            [stop(A1, 500, StopReason::Wanted)]
        );
        let stopping = [(A1, Life::Stopping { grace_ms: 500 })];
        assert_eq!(run(&[(A1, Some(500))], &stopping, FREE), [], "a repeated stop is no second stop");
        assert_eq!(
            run(&[(A1, Some(0))], &stopping, FREE),
            [stop(A1, 0, StopReason::Wanted)],
            "a kill may follow"
        );
    }

    #[test]
    fn the_first_state_of_a_registration_stops_what_it_does_not_hold() {
        let first = Terms { first_of_registration: true, ..FREE };
        assert_eq!(run(&[], &[(A1, Life::Running)], first), [stop(A1, 0, StopReason::Unconfirmed)]);
        let confirmed = run(&[(A1, None)], &[(A1, Life::Running)], first);
        assert_eq!(confirmed, [Action::Update(Box::new(sample(A1, 0)))]);
    }

    #[test]
    fn a_superseded_worker_is_killed_and_its_successor_waits_until_it_is_gone() {
        let both = run(&[(A1, Some(500)), (A2, None)], &[(A1, Life::Running)], FREE);
        assert_eq!(both, [stop(A1, 0, StopReason::Superseded)]);
        let gone = run(&[(A2, None)], &[(A1, Life::Over)], FREE);
        assert_eq!(gone, [Action::Start(Box::new(sample(A2, 0)))]);
    }

    #[test]
    fn what_never_ran_here_is_forsworn_and_what_ran_is_never_started_again() {
        assert_eq!(run(&[(A1, Some(0))], &[], FREE), [Action::Forswear(key(A1))]);
        assert_eq!(
            run(&[(A1, None)], &[(A2, Life::Running)], FREE),
            [Action::Forswear(key(A1))],
            "older than one seen"
        );
        assert_eq!(run(&[(A1, None)], &[(A1, Life::Over)], FREE), []);
        let started = Assigned { may_start: false, ..sample(A1, 0) };
        let desired = Desired { index: 9, workers: vec![started], orders: Vec::new() };
        let actions = reconcile(&desired, &BTreeMap::new(), &NewestAttempts::default(), FREE);
        assert_eq!(actions, [Action::Disown(key(A1))]);
    }
}
