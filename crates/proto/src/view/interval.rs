//! How often a group saves, and why.

use outlast_control::state::{ChosenInterval, Group, Job};
use outlast_types::spec::Every;

use crate::control::v1 as pb;

pub(super) fn interval_view(job: &Job, group: &Group) -> pb::SaveInterval {
    let every = job.spec.checkpoint.every;
    let text = interval_text(every, group.interval.as_ref());
    match (every, &group.interval) {
        (Every::Time(span), _) => {
            pb::SaveInterval { kind: "time".to_owned(), every_ms: span.millis(), text, ..Default::default() }
        }
        (Every::Steps(steps), _) => {
            pb::SaveInterval { kind: "steps".to_owned(), every_steps: steps, text, ..Default::default() }
        }
        (Every::Auto, chosen) => {
            let ChosenInterval { every_ms, cost_ms, mtbf_ms, failures } = chosen.unwrap_or(UNMEASURED);
            let kind = "auto".to_owned();
            pb::SaveInterval { kind, every_ms, every_steps: 0, cost_ms, mtbf_ms, failures, text }
        }
    }
}

const UNMEASURED: ChosenInterval = ChosenInterval { every_ms: 0, cost_ms: 0, mtbf_ms: 0, failures: 0 };

/// The interval and its reason, as the end of "it saves".
pub fn interval_text(every: Every, chosen: Option<&ChosenInterval>) -> String {
    match (every, chosen) {
        (Every::Time(span), _) => format!("every {}, as the job says", words(span.millis())),
        (Every::Steps(1), _) => "at every step, as the job says".to_owned(),
        (Every::Steps(steps), _) => format!("every {steps} steps, as the job says"),
        (Every::Auto, None) => "as often as fits, once a save was measured".to_owned(),
        (Every::Auto, Some(chosen)) => {
            let seen = match chosen.failures {
                0 => "none in this job so far".to_owned(),
                1 => "1 failure in this job".to_owned(),
                more => format!("{more} failures in this job"),
            };
            format!(
                "every {}: a save costs {}, something fails every {} ({seen})",
                words(chosen.every_ms),
                words(chosen.cost_ms),
                words(chosen.mtbf_ms)
            )
        }
    }
}

/// A length of time in the unit that people would take.
fn words(millis: u64) -> String {
    let secs = millis as f64 / 1_000.0;
    match millis {
        0..1_000 => format!("{millis} ms"),
        // Whole seconds without a decimal.
        1_000..10_000 if !millis.is_multiple_of(1_000) => format!("{secs:.1} s"),
        1_000..120_000 => format!("{secs:.0} s"),
        120_000..7_200_000 => format!("{:.0} min", secs / 60.0),
        7_200_000..172_800_000 => format!("{:.0} h", secs / 3_600.0),
        _ => format!("{:.0} days", secs / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use outlast_types::Span;

    use super::*;

    #[test]
    fn an_interval_is_told_with_its_reason() {
        let chosen =
            ChosenInterval { every_ms: 42_000, cost_ms: 1_200, mtbf_ms: 11 * 3_600_000, failures: 3 };
        for (every, chosen, told) in [
            (
                Every::Auto,
                Some(chosen),
                "every 42 s: a save costs 1.2 s, something fails every 11 h (3 failures in this job)",
            ),
            (Every::Auto, None, "as often as fits, once a save was measured"),
            (Every::Time(Span::from_secs(5)), Some(chosen), "every 5 s, as the job says"),
            (Every::Time(Span::from_millis(500)), None, "every 500 ms, as the job says"),
            (Every::Steps(100), None, "every 100 steps, as the job says"),
        ] {
            assert_eq!(interval_text(every, chosen.as_ref()), told);
        }
        let quiet = ChosenInterval { failures: 0, ..chosen };
        assert!(interval_text(Every::Auto, Some(&quiet)).ends_with("every 11 h (none in this job so far)"));
    }
}
