//! What a run may leave outside its folder, found by the run's name: processes, mounts, namespaces, shared memory.

use std::fs;
use std::path::{Path, PathBuf};

use outlast_local::find_processes;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::shell::run;

/// Everything of the run `tag` has a path below this.
pub(crate) fn folder_of(tag: &str) -> PathBuf {
    std::env::temp_dir().join(tag)
}

/// Where its workers write what they do: memory, so that no disk of the bed slows them down.
pub(crate) fn journal_of(tag: &str) -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.join(format!("{tag}-journal")) } else { folder_of(tag).join("journal") }
}

/// Takes away what a run left, and says what that was.
pub(crate) fn remove_leftovers(tag: &str) -> Vec<String> {
    let mut left = Vec::new();
    let folder = folder_of(tag);
    for found in find_processes(&folder) {
        if let Some(pid) = Pid::from_raw(found.pid) {
            // An error means that it has just ended.
            let _ = kill_process(pid, Signal::KILL);
        }
        left.push(format!("process {} ({})", found.pid, found.command));
    }
    for mount in mounts_below(&folder) {
        let _ = run(&["umount", "-l", &mount]);
        left.push(format!("mount {mount}"));
    }
    for namespace in namespaces(tag) {
        let _ = run(&["ip", "netns", "del", &namespace]);
        left.push(format!("namespace {namespace}"));
    }
    for place in [folder, journal_of(tag)] {
        if place.exists() {
            let _ = fs::remove_dir_all(&place);
            left.push(format!("folder {}", place.display()));
        }
    }
    left
}

/// Takes away what runs left that are dead.
pub(crate) fn sweep() {
    let names = [std::env::temp_dir(), PathBuf::from("/run/netns"), PathBuf::from("/dev/shm")];
    let entries = names.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let mut dead: Vec<String> =
        entries.filter_map(|entry| dead_run(&entry.file_name().to_string_lossy())).collect();
    dead.sort();
    dead.dedup();
    for tag in dead {
        let left = remove_leftovers(&tag);
        println!("chaos: swept what a dead run left: {}", left.join(", "));
    }
}

/// The run that a name belongs to, when that run is over.
fn dead_run(name: &str) -> Option<String> {
    let tag = name.split('-').next()?;
    let pid: i32 = tag.strip_prefix("occhaos")?.parse().ok()?;
    let is_alive = Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok());
    (!is_alive).then(|| tag.to_owned())
}

fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

fn namespaces(tag: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.split('-').next() == Some(tag)).collect()
}
