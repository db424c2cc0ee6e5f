//! Which processes belong to a cluster: found in `/proc` by what they were started with, since keepers and workers
//! outlive the agents that started them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub pid: i32,
    pub parent: i32,
    pub command: String,
}

/// All processes whose command line names a path below `folder`, with all their descendants.
pub fn find_processes(folder: &Path) -> Vec<Found> {
    let mark = folder.to_string_lossy().into_owned();
    let all = processes();
    let mut wanted: BTreeSet<i32> =
        all.values().filter(|p| p.command.contains(&mark)).map(|p| p.pid).collect();
    loop {
        let children = all.values().filter(|p| wanted.contains(&p.parent) && !wanted.contains(&p.pid));
        let children: Vec<i32> = children.map(|p| p.pid).collect();
        if children.is_empty() {
            break;
        }
        wanted.extend(children);
    }
    let me = std::process::id() as i32;
    all.into_values().filter(|p| wanted.contains(&p.pid) && p.pid != me).collect()
}

/// Every process that is not a zombie.
fn processes() -> BTreeMap<i32, Found> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, read_process(pid)?))).collect()
}

fn read_process(pid: i32) -> Option<Found> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in brackets and may hold anything; the fields behind it do not.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
    Some(Found { pid, parent, command })
}
