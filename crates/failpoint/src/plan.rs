//! What the variable asks for, and how often each place was passed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::names::{ALL, Failpoint};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Crash,
    Error,
    Pause(Duration),
}

/// One place that is steered.
#[derive(Debug)]
struct Steered {
    at: Failpoint,
    action: Action,
    /// Only this time, from 1; `None`: each time.
    only: Option<u64>,
    passed: AtomicU64,
}

/// A handful of entries at most: looked through, not indexed.
#[derive(Debug, Default)]
pub(crate) struct Plan(Vec<Steered>);

impl Plan {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(';').filter(|entry| !entry.is_empty());
        entries.map(steered).collect::<Result<_, _>>().map(Self)
    }

    /// What is to happen now that the place is passed.
    pub(crate) fn next(&self, at: Failpoint) -> Option<Action> {
        let steered = self.0.iter().find(|steered| steered.at == at)?;
        let times = steered.passed.fetch_add(1, Ordering::Relaxed) + 1;
        steered.only.is_none_or(|only| only == times).then_some(steered.action)
    }
}

fn steered(entry: &str) -> Result<Steered, String> {
    let (name, action) = entry.split_once('=').ok_or("an entry is NAME=ACTION")?;
    let at = ALL.iter().copied().find(|known| known.name() == name);
    let at = at.ok_or_else(|| format!("there is no failpoint {name:?}"))?;
    let (action, only) = match action.split_once('@') {
        None => (action, None),
        Some((action, times)) => {
            let times = times.parse().ok().filter(|times| *times > 0);
            (action, Some(times.ok_or("behind @ stands a number from 1")?))
        }
    };
    let action = match action {
        "crash" => Action::Crash,
        "error" => Action::Error,
        other => Action::Pause(pause(other).ok_or("an action is crash, error, pause:2s or pause:200ms")?),
    };
    Ok(Steered { at, action, only, passed: AtomicU64::new(0) })
}

fn pause(action: &str) -> Option<Duration> {
    let time = action.strip_prefix("pause:")?;
    match time.strip_suffix("ms") {
        Some(millis) => millis.parse().ok().map(Duration::from_millis),
        None => time.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_happens_at_its_place_and_its_time() {
        let text =
            "agent.write.middle=crash@2;agent.retire.after_unlink=pause:200ms;worker.open.before_call=error";
        let plan = Plan::parse(text).expect("understood");
        assert_eq!(plan.next(Failpoint::AgentWriteReserve), None);
        let middle: Vec<_> = (0..3).map(|_| plan.next(Failpoint::AgentWriteMiddle)).collect();
        assert_eq!(middle, [None, Some(Action::Crash), None]);
        let pause = Some(Action::Pause(Duration::from_millis(200)));
        assert_eq!([(); 2].map(|()| plan.next(Failpoint::AgentRetireAfterUnlink)), [pause, pause]);
        assert_eq!(plan.next(Failpoint::WorkerOpenBeforeCall), Some(Action::Error));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_ignored() {
        for text in [
            "agent.write.middle",
            "agent.write.muddle=crash",
            "agent.write.middle=crush",
            "agent.write.middle=crash@0",
            "agent.write.middle=crash@x",
            "agent.write.middle=pause:2",
        ] {
            assert!(Plan::parse(text).is_err(), "{text}");
        }
        assert!(Plan::parse("").expect("nothing").0.is_empty());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = ALL.iter().map(|at| at.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
