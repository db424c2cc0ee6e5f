//! How long things took, as distributions: until a leader acknowledged again, until a dead node was known, until work ran
//! again.

use std::collections::BTreeMap;

use crate::check::Timeline;
use crate::history::{Answer, Call, Phase, Record, What};

/// Milliseconds of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Times(Vec<u64>);

impl Times {
    fn add(&mut self, from: u64, to: u64) {
        self.0.push(to.saturating_sub(from) / 1_000_000);
    }

    /// `n | min | median | 90 % | max`, in milliseconds.
    pub(super) fn row(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at =
            |percent: usize| sorted.get((sorted.len().saturating_sub(1) * percent).div_ceil(100)).copied();
        match (at(0), at(50), at(90), at(100)) {
            (Some(min), Some(median), Some(most), Some(max)) => {
                format!("{} | {min} | {median} | {most} | {max}", sorted.len())
            }
            _ => "0 | – | – | – | –".to_owned(),
        }
    }
}

pub(super) fn times(records: &[Record], timeline: &Timeline) -> Vec<(&'static str, Times)> {
    vec![
        ("leader killed, frozen or cut off → next acknowledged write", until_write(records)),
        ("all coordinators without power → next acknowledged write", until_write_after_all(records)),
        ("node killed, frozen or cut off → declared lost", until_lost(records, timeline)),
        ("attempt ended → the next one runs", until_running(timeline)),
        ("a write, asked until acknowledged", latency(records, true)),
        ("a read, asked until answered", latency(records, false)),
    ]
}

/// Begin and end of each fault of these kinds that took hold, and what it hit.
fn faults<'a>(records: &'a [Record], kinds: &[&str]) -> Vec<(u64, u64, &'a [String])> {
    let mut begun: BTreeMap<u32, u64> = BTreeMap::new();
    let mut faults = Vec::new();
    for record in records {
        let What::Fault { id, nemesis, phase, targets, effective, .. } = &record.what else { continue };
        match phase {
            Phase::Begin => {
                begun.insert(*id, record.at);
            }
            Phase::End if *effective && kinds.contains(&nemesis.as_str()) => {
                faults.extend(begun.get(id).map(|from| (*from, record.at, targets.as_slice())));
            }
            _ => {}
        }
    }
    faults
}

fn until_write(records: &[Record]) -> Times {
    writes_after(records, &["kill-leader", "pause-leader", "partition-leader"])
}

fn until_write_after_all(records: &[Record]) -> Times {
    writes_after(records, &["power-cut-all"])
}

fn writes_after(records: &[Record], kinds: &[&str]) -> Times {
    let writes = acknowledged(records);
    let mut times = Times::default();
    for (from, _, _) in faults(records, kinds) {
        let next = writes.iter().filter(|(asked, _)| *asked >= from).map(|(_, answered)| *answered).min();
        if let Some(next) = next {
            times.add(from, next);
        }
    }
    times
}

/// Asked and answered, of every acknowledged submission.
fn acknowledged(records: &[Record]) -> Vec<(u64, u64)> {
    pairs(
        records,
        |call| matches!(call, Call::Submit { .. }),
        |answer| matches!(answer, Answer::Submitted { .. }),
    )
}

fn pairs(records: &[Record], is_call: fn(&Call) -> bool, is_answer: fn(&Answer) -> bool) -> Vec<(u64, u64)> {
    let mut asked: BTreeMap<u64, u64> = BTreeMap::new();
    let mut pairs = Vec::new();
    for record in records {
        match &record.what {
            What::Call { op, call, .. } if is_call(call) => {
                asked.insert(*op, record.at);
            }
            What::Return { op, answer } if is_answer(answer) => {
                pairs.extend(asked.get(op).map(|at| (*at, record.at)));
            }
            _ => {}
        }
    }
    pairs
}

fn latency(records: &[Record], of_writes: bool) -> Times {
    let pairs = match of_writes {
        true => acknowledged(records),
        false => pairs(
            records,
            |call| matches!(call, Call::Get { .. } | Call::List),
            |answer| matches!(answer, Answer::Job { .. } | Answer::Jobs { .. }),
        ),
    };
    let mut times = Times::default();
    pairs.into_iter().for_each(|(from, to)| times.add(from, to));
    times
}

fn until_lost(records: &[Record], timeline: &Timeline) -> Times {
    /// A node that comes back registers anew; its loss is told soon after.
    const AFTER_NS: u64 = 10_000_000_000;
    let mut times = Times::default();
    for (from, to, targets) in
        faults(records, &["kill-node", "pause-agent", "partition-agent", "power-cut-node"])
    {
        let lost =
            timeline.events().filter(|(_, event)| event.kind == "node_lost" && targets.contains(&event.node));
        let seen = lost.filter_map(|(index, _)| timeline.seen_at.get(&index)).copied();
        if let Some(at) = seen.filter(|at| (from..to + AFTER_NS).contains(at)).min() {
            times.add(from, at);
        }
    }
    times
}

fn until_running(timeline: &Timeline) -> Times {
    let mut ended: BTreeMap<&str, u64> = BTreeMap::new();
    let mut times = Times::default();
    for (index, event) in timeline.events() {
        let group = event.attempt.split('@').next().unwrap_or_default();
        let Some(at) = timeline.seen_at.get(&index).copied() else { continue };
        match event.kind.as_str() {
            "attempt_ended" => {
                ended.insert(group, at);
            }
            "attempt_running" => {
                if let Some(from) = ended.remove(group) {
                    times.add(from, at);
                }
            }
            _ => {}
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_told_by_its_order() {
        let times = Times((1..=10).rev().map(|n| n * 100).collect());
        assert_eq!(times.row(), "10 | 100 | 600 | 1000 | 1000");
        assert_eq!(Times::default().row(), "0 | – | – | – | –");
    }
}
