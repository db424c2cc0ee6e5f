//! `checkpoint: {every: auto}`: how often a job saves, from what a checkpoint costs it and how often things fail.
//!
//! Young's first-order optimum (J. W. Young, CACM 17(9), 1974; J. T. Daly, FGCS 22(3), 2006): with a cost of `C` and a mean
//! time between failures of `M`, an interval of `sqrt(2 C M)` wastes least on saving and on repeating together.

use outlast_types::spec::Every;
use outlast_types::{AttemptId, Cause, CauseClass, Millis};

use super::Pass;
use crate::state::{Attempt, ChosenInterval, Command, Group, Job};

/// Before anything was seen a machine is believed to fail once a day: more often than most do, so the first guess is the
/// careful one.
const NODE_MTBF_MS: Millis = 24 * 3_600_000;
/// Saving more often than this costs more in log entries than it could save in work.
const EVERY_MS_MIN: Millis = 10_000;
/// What a person would be willing to see repeated, however seldom things fail.
const EVERY_MS_MAX: Millis = 30 * 60_000;
/// At most a tenth of the time goes into saving, however often things fail.
const COST_SHARE_MAX: u64 = 10;
/// A change below a fifth is noise, and each one is an entry in the log.
const CHANGE_PERCENT: u64 = 20;

/// What one save cost a rank, as its agent measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SaveCost {
    /// How long the worker could not train.
    pub stall_ms: Millis,
    /// Until every byte was durable on its node.
    pub write_ms: Millis,
}

/// The interval for this cost and this record of failures.
fn choose(cost: SaveCost, failures: u64, ran_ms: Millis, ranks: u32) -> ChosenInterval {
    let prior_ms = NODE_MTBF_MS / u64::from(ranks.max(1));
    let mtbf_ms = prior_ms.saturating_add(ran_ms) / failures.saturating_add(1);
    let stall_ms = cost.stall_ms.max(1);
    let best_ms = 2u64.saturating_mul(stall_ms).saturating_mul(mtbf_ms.max(1)).isqrt();
    // Not before the last one is written, and not more than the share of the time.
    let least_ms = EVERY_MS_MIN.max(stall_ms.saturating_mul(COST_SHARE_MAX)).max(cost.write_ms);
    let every_ms = best_ms.min(EVERY_MS_MAX).max(least_ms);
    ChosenInterval { every_ms, cost_ms: stall_ms, mtbf_ms, failures }
}

/// Proposes another interval for a running attempt, where what was measured since asks for one.
pub(super) fn plan(pass: &mut Pass<'_>, job: &Job, group: &Group, attempt: &Attempt) {
    if job.spec.checkpoint.every != Every::Auto {
        return;
    }
    let Some(cost) = slowest(pass, &attempt.id, attempt.world_size()) else { return };
    let counts = |attempt: &&Attempt| {
        let class = attempt.cause.as_ref().map(Cause::class);
        matches!(class, Some(CauseClass::User | CauseClass::Infrastructure))
    };
    let failures = group.attempts.iter().filter(counts).count() as u64;
    let ran_ms = group.attempts.iter().map(|attempt| ran_ms(pass, attempt)).sum();
    let chosen = choose(cost, failures, ran_ms, attempt.world_size());
    let is_news = group.interval.is_none_or(|now| {
        now.every_ms.abs_diff(chosen.every_ms) * 100 > now.every_ms.saturating_mul(CHANGE_PERCENT)
    });
    if is_news {
        let why =
            format!("a save costs {} ms, something fails every {} s", chosen.cost_ms, chosen.mtbf_ms / 1_000);
        let command =
            Command::SetInterval { group: group.id, interval: chosen, incarnation: pass.incarnation };
        pass.plan.push(command, Some(why));
    }
}

/// The rank that saving costs most, by the middle one of its newest saves: the others wait for it at the next step.
fn slowest(pass: &Pass<'_>, attempt: &AttemptId, world_size: u32) -> Option<SaveCost> {
    let costs = (0..world_size).filter_map(|rank| pass.seen.save_cost(*attempt, rank));
    costs.reduce(|a, b| SaveCost {
        stall_ms: a.stall_ms.max(b.stall_ms),
        write_ms: a.write_ms.max(b.write_ms),
    })
}

fn ran_ms(pass: &Pass<'_>, attempt: &Attempt) -> Millis {
    let until = attempt.stopping_at.or(attempt.ended_at).unwrap_or(pass.now.wall);
    attempt.running_at.map_or(0, |since| until.since(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_s(stall_ms: u64, write_ms: u64, failures: u64, ran_h: u64, ranks: u32) -> u64 {
        let cost = SaveCost { stall_ms, write_ms };
        choose(cost, failures, ran_h * 3_600_000, ranks).every_ms / 1_000
    }

    #[test]
    fn young_within_bounds() {
        // sqrt(2 * 2 s * 43,200 s) = 415 s: two ranks, nothing seen yet.
        assert_eq!(every_s(2_000, 0, 0, 0, 2), 415);
        // After a day without a failure the machines are trusted more, after a bad one less.
        assert_eq!(every_s(2_000, 0, 0, 24, 2), 720);
        assert_eq!(every_s(2_000, 0, 20, 24, 2), 157);
        assert_eq!(every_s(1, 0, 0, 0, 8), 10, "never below ten seconds");
        assert_eq!(every_s(1_000, 0, 10_000, 1, 8), 10, "nor above a tenth of the time");
        assert_eq!(every_s(30_000, 0, 10_000, 1, 8), 300);
        assert_eq!(every_s(2_000, 600_000, 20, 24, 2), 600, "nor before the last one is written");
        assert_eq!(every_s(60_000, 0, 0, 9_000, 1), 1_800, "nor more than half an hour");
    }
}
