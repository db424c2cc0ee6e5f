//! From the end of the worker's main process to its record: drain the pipes, kill the rest, find out why.

use std::thread::sleep;
use std::time::Duration;

use outlast_types::ExitStatus;

use super::pump::Pump;
use super::supervise::{Killing, Outcome, Supervisor};
use crate::record::ExitFile;
use crate::{boot_now, wall_now};

/// What still writes right after the main process ended (a `tee`, a forked logger) may finish its sentence.
const DRAIN_MS: u64 = 50;
/// Longer than any process takes to die that is not stuck in the kernel; after it, the record says how many are left.
const KILL_WAIT_MS: u64 = 5_000;
const PUMP_WAIT: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;
/// How a shell reports that its child was killed by SIGKILL.
const SHELL_KILLED: i32 = 128 + SIGKILL;

pub(super) fn end(supervisor: &mut Supervisor, outcome: &Outcome, mut pump: Pump) -> ExitFile {
    let ended_at = wall_now();
    if outcome.killing.is_none() && supervisor.until_fence_ms() > 2 * DRAIN_MS {
        pump.wait(Duration::from_millis(DRAIN_MS));
    }
    let stragglers = supervisor.remaining();
    let leftovers = kill_rest(supervisor);
    let has_all_output = pump.finish(PUMP_WAIT);
    let oom_kills = supervisor.cgroup.as_ref().map_or(0, |cgroup| cgroup.oom_kills());
    if leftovers == 0
        && let Some(cgroup) = &supervisor.cgroup
    {
        cgroup.remove();
    }
    let mut notes = Vec::new();
    notes.extend(killing_note(outcome));
    if oom_kills > 0 {
        notes.push(format!("the kernel killed {oom_kills} of its processes for lack of memory"));
    }
    if stragglers > 0 && leftovers == 0 {
        notes.push(format!("{stragglers} processes that it left behind were killed"));
    }
    if leftovers > 0 {
        notes.push(format!("{leftovers} of its processes could not be killed and may still run"));
    }
    if !has_all_output || pump.dropped() > 0 {
        notes.push(format!("its log is incomplete ({} lines dropped)", pump.dropped()));
    }
    let fenced = outcome.killing == Some(Killing::Fenced);
    ExitFile {
        status: status(
            outcome.status.exit_status(),
            outcome.status.terminating_signal(),
            fenced,
            oom_kills > 0 && outcome.killing.is_none(),
        ),
        ended_at,
        started_at: supervisor.worker.started_at,
        last_lines: pump.last_lines(),
        detail: notes.join("; "),
        fenced,
        leftovers: u32::try_from(leftovers).unwrap_or(u32::MAX),
        left: if leftovers > 0 { supervisor.left() } else { Vec::new() },
    }
}

/// Kills until nothing is left or patience ends; how many are left.
fn kill_rest(supervisor: &mut Supervisor) -> usize {
    let until = boot_now().plus(KILL_WAIT_MS);
    let mut pause = Duration::from_millis(1);
    loop {
        let left = supervisor.remaining();
        if left == 0 || boot_now() >= until {
            return left;
        }
        supervisor.kill_all();
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn killing_note(outcome: &Outcome) -> Option<String> {
    match outcome.killing {
        Some(Killing::Fenced) => Some("killed by its keeper because the node's lease ran out".to_owned()),
        Some(Killing::Stopped { after_ms: 0 }) => Some("killed as asked".to_owned()),
        Some(Killing::Stopped { after_ms }) => {
            Some(format!("killed as it did not stop within {:.1} s of SIGTERM", after_ms as f64 / 1000.0))
        }
        None if outcome.terminated => Some("asked to stop".to_owned()),
        None => None,
    }
}

/// A SIGKILL counts as out of memory only where the kernel says that it was one and nobody else sent it.
fn status(code: Option<i32>, signal: Option<i32>, fenced: bool, is_oom: bool) -> ExitStatus {
    match (code, signal) {
        (Some(0), _) => ExitStatus::Code(0),
        _ if fenced => ExitStatus::Fenced,
        (Some(SHELL_KILLED), _) | (_, Some(SIGKILL)) if is_oom => ExitStatus::OutOfMemory,
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::KeeperLost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart() {
        let exited = |code: i32, fenced, is_oom| status(Some(code), None, fenced, is_oom);
        let signalled = |signal: i32, fenced, is_oom| status(None, Some(signal), fenced, is_oom);
        assert_eq!(exited(0, true, true), ExitStatus::Code(0));
        assert_eq!(exited(3, false, false), ExitStatus::Code(3));
        assert_eq!(exited(SHELL_KILLED, false, true), ExitStatus::OutOfMemory);
        assert_eq!(exited(1, false, true), ExitStatus::Code(1));
        assert_eq!(signalled(SIGKILL, false, true), ExitStatus::OutOfMemory);
        assert_eq!(signalled(SIGKILL, false, false), ExitStatus::Signal(9));
        assert_eq!(signalled(SIGKILL, true, false), ExitStatus::Fenced);
        assert_eq!(exited(1, true, false), ExitStatus::Fenced);
        assert_eq!(signalled(11, false, false), ExitStatus::Signal(11));
    }
}
