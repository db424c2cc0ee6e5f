//! What the demo measured: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// All times in seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// From the node's kill to `NodeLost` in the log.
    pub(super) detect_s: f64,
    /// From `NodeLost` to the new attempt in the log.
    pub(super) reschedule_s: f64,
    /// From the node's kill to the first step that no attempt had made before the kill was noticed.
    pub(super) first_step_s: f64,
    /// From the leader's kill to the first write that was acknowledged again.
    pub(super) leader_gap_s: f64,
    /// From the agent's freeze to `NodeLost`.
    pub(super) freeze_detect_s: f64,
    /// Steps that were made more than once, over all recoveries.
    pub(super) steps_repeated: u64,
    pub(super) steps: u64,
    pub(super) accuracy: f64,
    pub(super) digest: String,
    pub(super) reference_digest: String,
    pub(super) attempts: Vec<AttemptLine>,
    /// Checkpoints that were sealed.
    pub(super) sealed: u64,
    /// Processes that had to be ended at the end although they should have been gone.
    pub(super) leftover_processes: usize,
    pub(super) total_s: f64,
}

/// One attempt, as the log has it.
#[derive(Debug, Serialize)]
pub(super) struct AttemptLine {
    pub(super) attempt: String,
    pub(super) rung: String,
    pub(super) nodes: Vec<String>,
    pub(super) from_step: u64,
    pub(super) outcome: String,
    pub(super) cause: String,
}

/// Below this the training itself went wrong.
const ACCURACY_MIN: f64 = 0.95;

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.same_weights() && self.accuracy >= ACCURACY_MIN
    }

    fn same_weights(&self) -> bool {
        !self.digest.is_empty() && self.digest == self.reference_digest
    }

    /// The table at the end.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<42} {value}");
        };
        row("node killed: detected after", format!("{:.2} s", self.detect_s));
        row("  new attempt in the log after another", format!("{:.3} s", self.reschedule_s));
        row("  first new step, counted from the kill", format!("{:.2} s", self.first_step_s));
        row("leader killed: writes acknowledged after", format!("{:.2} s", self.leader_gap_s));
        row("agent frozen: detected after", format!("{:.2} s", self.freeze_detect_s));
        row("steps made / repeated", format!("{} / {}", self.steps, self.steps_repeated));
        row("checkpoints sealed", self.sealed.to_string());
        row("accuracy on held-out data", format!("{:.4}", self.accuracy));
        row("weights, this run", short(&self.digest));
        row("weights, undisturbed run", short(&self.reference_digest));
        row("identical", if self.same_weights() { "yes, bit for bit" } else { "NO" }.to_owned());
        row("processes left over", self.leftover_processes.to_string());
        text.push_str("\n  attempts, from the log:\n");
        for line in &self.attempts {
            let _ = writeln!(
                text,
                "    {:<10} {:<10} on {:<10} from step {:<5} {:<9} {}",
                line.attempt,
                line.rung,
                line.nodes.join(","),
                line.from_step,
                line.outcome,
                line.cause
            );
        }
        text
    }
}

fn short(digest: &str) -> String {
    match digest.get(..16) {
        Some(start) => format!("{start}…"),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_good_only_with_equal_digests_and_enough_accuracy() {
        let run = |digest: &str, reference: &str, accuracy| Report {
            digest: digest.into(),
            reference_digest: reference.into(),
            accuracy,
            ..Report::default()
        };
        assert!(run("ab", "ab", 0.97).is_good());
        assert!(!run("ab", "cd", 0.97).is_good());
        assert!(!run("ab", "ab", 0.94).is_good());
        assert!(!run("", "", 0.97).is_good(), "two missing digests are not equal weights");
    }
}
