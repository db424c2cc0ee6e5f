//! What `/proc` says about processes: guards against reused pids, and finds everything that belongs to a worker.

use std::collections::HashMap;
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::record::LeftProcess;

/// Marks every process of a worker, inherited by whatever it starts. Its value is in the spec.
pub(crate) const MARK_VARIABLE: &str = "OUTLAST_KEEPER";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcStat {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) state: u8,
    /// Clock ticks since boot. Together with the pid it names one process of this boot.
    pub(crate) start_time: u64,
}

impl ProcStat {
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

pub(crate) fn stat(pid: u32) -> Option<ProcStat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: u32, text: &str) -> Option<ProcStat> {
    // The name in parentheses may contain anything, parentheses and spaces included.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    Some(ProcStat {
        pid,
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Start of a process in clock ticks since boot; `None` when there is no such process. With the pid it names one process.
pub fn process_start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.start_time)
}

fn all() -> Vec<ProcStat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Living processes below `root` (itself excluded), at any depth.
pub(crate) fn descendants(root: u32) -> Vec<ProcStat> {
    let mut children: HashMap<u32, Vec<ProcStat>> = HashMap::new();
    for stat in all() {
        children.entry(stat.parent).or_default().push(stat);
    }
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(parent) = open.pop() {
        for stat in children.remove(&parent).unwrap_or_default() {
            open.push(stat.pid);
            found.push(stat);
        }
    }
    found.retain(|stat| !stat.is_dead());
    found
}

/// Living processes whose environment carries this mark.
pub(crate) fn marked(mark: &str) -> Vec<ProcStat> {
    let wanted = format!("{MARK_VARIABLE}={mark}");
    let is_marked = |pid: u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
    };
    all().into_iter().filter(|stat| !stat.is_dead() && is_marked(stat.pid)).collect()
}

/// Those of them that still live.
pub(crate) fn alive(named: &[LeftProcess]) -> Vec<ProcStat> {
    let is_it = |left: &LeftProcess| {
        stat(left.pid).filter(|stat| stat.start_time == left.start_time && !stat.is_dead())
    };
    named.iter().filter_map(is_it).collect()
}

/// SIGKILL to exactly that process: never to another one that got its pid meanwhile.
pub(crate) fn kill_exactly(target: &ProcStat) {
    let Some(pid) = i32::try_from(target.pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if process_start_time(target.pid) != Some(target.start_time) {
        return;
    }
    match pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(err) => tracing::warn!(pid = target.pid, %err, "could not kill a process of a worker"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse_the_parser() {
        let text = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 1";
        let stat = parse_stat(7, text).expect("valid");
        assert_eq!((stat.parent, stat.state, stat.start_time), (3, b'S', 4242));
        assert!(
            parse_stat(7, "").is_none()
                && parse_stat(7, "7 (x").is_none()
                && parse_stat(7, "7 (x)").is_none()
        );
    }

    #[test]
    fn this_process_is_found_and_a_child_is_its_descendant() {
        let me = std::process::id();
        assert!(process_start_time(me).is_some());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        assert!(descendants(me).iter().any(|stat| stat.pid == child.id()));
        kill_exactly(&stat(child.id()).expect("alive"));
        assert!(!child.wait().expect("waited").success());
    }
}
