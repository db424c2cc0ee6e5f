//! A training attempt that reports no step for too long is stopped and restarted.

use outlast_types::spec::HangAfter;
use outlast_types::{Cause, JobKind, Millis};

use super::Pass;
use crate::state::{Assignment, Attempt, AttemptPhase, Command, Job};

/// The learned time is this many times the longest recent interval, at least a minute: an evaluation or a slow save
/// must not look like a hang.
const LEARNED_FACTOR: Millis = 5;
const LEARNED_MIN_MS: Millis = 60_000;

/// Says whether a stop was planned.
pub(super) fn plan(pass: &mut Pass<'_>, job: &Job, attempt: &Attempt) -> bool {
    let watched = job.spec.kind == JobKind::Training && job.spec.recovery.hang_after != HangAfter::Never;
    if !watched || attempt.phase != AttemptPhase::Running {
        return false;
    }
    for seat in attempt.assignments.iter().filter(|seat| seat.is_running()) {
        let Some((silent_ms, limit_ms)) = silence(pass, job, attempt, seat) else { continue };
        if silent_ms <= limit_ms {
            pass.plan.check_in(limit_ms - silent_ms + 1);
            continue;
        }
        let cause = Cause::Hang { rank: seat.rank, silent_ms };
        let evidence = format!("{cause}; the limit is {:.1} s", limit_ms as f64 / 1_000.0);
        let command = Command::StopAttempt {
            attempt: attempt.id,
            cause,
            graceful: false,
            incarnation: pass.incarnation,
        };
        pass.plan.push(command, Some(evidence));
        return true;
    }
    false
}

/// How long a rank has been silent, and how long it may be. `None`: nothing was learned yet.
fn silence(pass: &Pass<'_>, job: &Job, attempt: &Attempt, seat: &Assignment) -> Option<(Millis, Millis)> {
    let progress = pass.seen.progress(attempt.id, seat.rank);
    let limit_ms = match job.spec.recovery.hang_after {
        HangAfter::Never => return None,
        HangAfter::After(span) => span.millis(),
        HangAfter::Auto => progress?.longest_ms()?.saturating_mul(LEARNED_FACTOR).max(LEARNED_MIN_MS),
    };
    // A new leader has heard nothing yet: silence counts from when it could have heard something.
    let running_since = pass.seen.running_since.get(&attempt.id).copied().unwrap_or(pass.now.boot);
    let since = progress.map_or(running_since, |progress| progress.at).max(pass.seen.leader_since);
    Some((pass.now.boot.since(since), limit_ms))
}
