//! Faults of nodes: agents, keepers, workers, and the disks and clocks under them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use outlast_local::Found;
use rustix::process::{Pid, Signal, kill_process};

use super::carry::{Effect, Fault};
use crate::bed::{flip_bits, run};

/// Which processes of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Keeper,
    Worker,
}

/// Offsets of the boot clock: nodes that were started at other times.
const OFFSETS_S: &[i64] = &[-600, -30, 45, 3_600, 86_400];
/// The only node whose shards rot: with a second one both copies of a checkpoint might.
const ROTTING: &str = "n1";

async fn any(fault: &mut Fault<'_>) -> Result<String> {
    let agents = fault.bed.agents();
    let node = fault.rng.pick(&agents).cloned().context("there is no agent")?;
    fault.claim(std::slice::from_ref(&node)).await?;
    Ok(node)
}

/// The agent alone, or everything on its node.
pub(crate) async fn kill(fault: &mut Fault<'_>, whole_node: bool) -> Result<Effect> {
    let node = any(fault).await?;
    let workers = workers_of(fault, &node)?;
    fault.bed.with(&node, |agent| {
        if whole_node {
            agent.kill_tree()
        } else {
            agent.kill()
        };
        Ok(())
    })?;
    fault.hold(&format!("{workers} workers were there")).await;
    fault.bed.with(&node, |agent| agent.start())?;
    Ok(Effect::of(true, "it runs again"))
}

fn workers_of(fault: &Fault<'_>, node: &str) -> Result<usize> {
    let below = fault.bed.with(node, |agent| Ok(agent.descendants()))?;
    Ok(below.iter().filter(|found| is(found, Below::Worker)).count())
}

fn is(found: &Found, below: Below) -> bool {
    let word = if below == Below::Keeper { " keeper " } else { " worker --journal " };
    found.command.contains(word)
}

/// One keeper or one worker, on whichever node has one.
pub(crate) async fn kill_below(fault: &mut Fault<'_>, below: Below) -> Result<Effect> {
    let mut nodes = fault.bed.agents();
    fault.rng.shuffle(&mut nodes);
    for node in nodes {
        if fault.bed.is_claimed(&node) {
            continue;
        }
        let all = fault.bed.with(&node, |agent| Ok(agent.descendants()))?;
        let all: Vec<Found> = all.into_iter().filter(|found| is(found, below)).collect();
        let Some(pid) = fault.rng.pick(&all).and_then(|found| Pid::from_raw(found.pid)) else { continue };
        kill_process(pid, Signal::KILL).context("it was gone")?;
        fault.aim(&[node]);
        fault.hold(&format!("process {}", pid.as_raw_nonzero())).await;
        return Ok(Effect::of(true, ""));
    }
    bail!("nothing of that kind runs")
}

/// The agent only: its keepers watch the leases meanwhile.
pub(crate) async fn pause(fault: &mut Fault<'_>) -> Result<Effect> {
    let node = any(fault).await?;
    signal(fault, &node, Signal::STOP)?;
    fault.hold("stopped").await;
    signal(fault, &node, Signal::CONT)?;
    Ok(Effect::of(true, "it goes on"))
}

fn signal(fault: &Fault<'_>, node: &str, signal: Signal) -> Result<()> {
    fault.bed.with(node, |agent| {
        agent.signal(signal);
        Ok(())
    })
}

pub(crate) async fn power_cut(fault: &mut Fault<'_>) -> Result<Effect> {
    let node = any(fault).await?;
    let disk = fault.bed.disks.get(&node).context("it has no disk of its own")?;
    // Frozen first: a process that sees the dead disk could tell others before it dies.
    signal(fault, &node, Signal::STOP)?;
    disk.cut()?;
    let is_dead = disk.try_write().is_err();
    fault.bed.with(&node, |agent| {
        agent.kill_tree();
        Ok(())
    })?;
    fault.hold("without power").await;
    disk.restart()?;
    // Or only the disk lost what was not synced, as one behind a cable or a network can.
    let is_reboot = fault.rng.chance(50);
    if is_reboot {
        forget_boot(&disk.folder)?;
    }
    fault.bed.with(&node, |agent| agent.start())?;
    Ok(Effect::of(is_dead, if is_reboot { "power is back" } else { "back, and the boot id is the same" }))
}

/// A machine that lost its power comes back with another boot id, by which the agent knows that no worker can be left. The
/// kernel's cannot be changed, so what is written down of the workers is made to be of an earlier boot.
fn forget_boot(folder: &Path) -> Result<()> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("no boot id")?;
    let earlier: String = boot.trim().chars().rev().collect();
    for entry in std::fs::read_dir(folder.join("workers")).into_iter().flatten().flatten() {
        let path = entry.path().join("worker.json");
        // One that is not there was not begun, as far as the disk knows.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let changed = text.replace(boot.trim(), &reversed_groups(&earlier));
        std::fs::write(&path, changed).with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

/// Hexadecimal digits in groups of 8, 4, 4, 4 and 12, whatever the groups were before.
fn reversed_groups(text: &str) -> String {
    let digits: Vec<char> = text.chars().filter(|c| *c != '-').collect();
    let mut groups = Vec::new();
    let mut rest = digits.as_slice();
    for length in [8, 4, 4, 4, 12] {
        let (group, after) = rest.split_at(length.min(rest.len()));
        groups.push(group.iter().collect::<String>());
        rest = after;
    }
    groups.join("-")
}

pub(crate) async fn full_disk(fault: &mut Fault<'_>) -> Result<Effect> {
    let node = any(fault).await?;
    let disk = fault.bed.disks.get(&node).context("it has no disk of its own")?;
    tokio::task::block_in_place(|| disk.fill())?;
    let is_full = disk.try_write().is_err();
    fault.hold("no byte is left").await;
    disk.empty();
    // One that gave up is started again, as its init system would.
    let ended = fault.bed.with(&node, |agent| Ok(!agent.is_running()))?;
    if ended {
        fault.bed.with(&node, |agent| agent.start())?;
    }
    Ok(Effect::of(is_full, if ended { "there is room; the agent had ended" } else { "there is room" }))
}

/// A sealed shard changes under a running agent, which must not hand it on.
pub(crate) async fn bit_rot(fault: &mut Fault<'_>) -> Result<Effect> {
    let folder = fault.bed.with(ROTTING, |agent| Ok(agent.folder.clone()))?;
    let is_shard =
        |path: &Path| path.components().any(|part| part.as_os_str() == "blobs") && path.extension().is_none();
    let path = flip_bits(&folder, &mut fault.rng, is_shard)?;
    let note = path.strip_prefix(&folder).unwrap_or(&path).display().to_string();
    fault.aim(&[ROTTING.to_owned()]);
    fault.hold(&note).await;
    Ok(Effect::of(true, note))
}

/// The node comes up with another boot clock. Everything on it goes: a keeper that is older than its agent would count on
/// another clock, which no machine does.
pub(crate) async fn clock(fault: &mut Fault<'_>) -> Result<Effect> {
    let node = any(fault).await?;
    let offset = fault.rng.pick(OFFSETS_S).copied().unwrap_or(45);
    fault.bed.with(&node, |agent| {
        agent.kill_tree();
        Ok(())
    })?;
    fault.hold(&format!("boot clock {offset:+} s")).await;
    start_at(fault, &node, offset)
}

/// Starts it with its boot clock off by so much.
pub(crate) fn start_at(fault: &Fault<'_>, name: &str, offset_s: i64) -> Result<Effect> {
    let place = fault.bed.network.as_ref().and_then(|network| network.place(name));
    let mut prefix = place.map(|place| place.enter).unwrap_or_default();
    let unshare =
        ["unshare".to_owned(), "--time".to_owned(), format!("--boottime={offset_s}"), "--".to_owned()];
    prefix.extend(unshare);
    let pid = fault.bed.with(name, |daemon| {
        daemon.set_prefix(prefix);
        daemon.start()?;
        daemon.pid().context("it has no process")
    })?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let theirs = run(&["readlink", &format!("/proc/{pid}/ns/time")])?;
    let ours = run(&["readlink", "/proc/self/ns/time"])?;
    ensure!(theirs != ours, "{name} runs on this machine's own clock");
    Ok(Effect::of(true, format!("boot clock {offset_s:+} s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_power_cut_workers_are_of_an_earlier_boot() {
        let dir = std::env::temp_dir().join(format!("outlast-chaos-boot-{}", std::process::id()));
        let worker = dir.join("workers/j1.0.1.1-0");
        std::fs::create_dir_all(&worker).expect("a folder");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux has one");
        let file = worker.join("worker.json");
        std::fs::write(&file, format!("{{\"boot\":\"{}\"}}", boot.trim())).expect("written");
        forget_boot(&dir).expect("changed");
        let text = std::fs::read_to_string(&file).expect("it is there");
        std::fs::remove_dir_all(&dir).expect("removed");
        assert!(!text.contains(boot.trim()), "{text}");
        assert_eq!(text.len(), "{'boot':''}".len() + boot.trim().len());
    }
}
