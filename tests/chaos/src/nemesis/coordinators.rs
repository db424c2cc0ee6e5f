//! Faults of coordinators, at most a minority at a time, but for the power cut of all.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::agents::start_at;
use super::carry::{Effect, Fault};
use crate::bed::flip_bits;

/// What a member needs to be back, on a busy machine.
const BACK_MAX: Duration = Duration::from_secs(60);
/// While it is damaged the cluster has no more than a bare majority, which a partition may take away.
const REMOVE_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SLOW_WRITES: u32 = 8;
const OFFSETS_S: &[i64] = &[-900, -20, 15, 7_200];
/// Damage is not tried for ever by something that another start cannot mend.
const EXIT_DAMAGED: i32 = 78;

/// The leader, taken; checked again once it is ours, since it may have changed meanwhile.
async fn leader(fault: &mut Fault<'_>) -> Result<String> {
    let leader = fault.leader().await?;
    fault.claim(std::slice::from_ref(&leader)).await?;
    let again = fault.leader().await?;
    ensure!(again == leader, "the leader changed meanwhile");
    Ok(leader)
}

async fn any(fault: &mut Fault<'_>) -> Result<String> {
    let all = fault.bed.coordinators();
    let name = fault.rng.pick(&all).cloned().context("there is no coordinator")?;
    fault.claim(std::slice::from_ref(&name)).await?;
    Ok(name)
}

async fn follower(fault: &mut Fault<'_>) -> Result<String> {
    let leader = fault.leader().await?;
    let others: Vec<String> = fault.bed.coordinators().into_iter().filter(|name| *name != leader).collect();
    let name = fault.rng.pick(&others).cloned().context("there is no follower")?;
    fault.claim(std::slice::from_ref(&name)).await?;
    Ok(name)
}

fn kill(fault: &Fault<'_>, name: &str) -> Result<()> {
    fault.bed.with(name, |daemon| {
        daemon.kill();
        Ok(())
    })
}

fn start(fault: &Fault<'_>, name: &str) -> Result<()> {
    fault.bed.with(name, |daemon| daemon.start())
}

fn signal(fault: &Fault<'_>, name: &str, signal: Signal) -> Result<()> {
    fault.bed.with(name, |daemon| {
        daemon.signal(signal);
        Ok(())
    })
}

pub(crate) async fn kill_leader(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = leader(fault).await?;
    kill(fault, &name)?;
    fault.hold("the leader was killed").await;
    start(fault, &name)?;
    Ok(Effect::of(true, "it runs again"))
}

pub(crate) async fn pause_leader(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = leader(fault).await?;
    signal(fault, &name, Signal::STOP)?;
    fault.hold("the leader was stopped").await;
    signal(fault, &name, Signal::CONT)?;
    Ok(Effect::of(true, "it goes on"))
}

pub(crate) async fn power_cut(fault: &mut Fault<'_>, all: bool) -> Result<Effect> {
    let names = if all { fault.bed.coordinators() } else { vec![any(fault).await?] };
    if all {
        fault.claim(&names).await?;
    }
    let mut dead = true;
    // Frozen first: nothing that was acknowledged may rest on what is not yet on a disk.
    for name in &names {
        signal(fault, name, Signal::STOP)?;
    }
    for name in &names {
        let disk = fault.bed.disks.get(name).context("it has no disk of its own")?;
        disk.cut()?;
        dead &= disk.try_write().is_err();
        kill(fault, name)?;
    }
    fault.hold("without power").await;
    for name in &names {
        fault.bed.disks.get(name).context("it has no disk of its own")?.restart()?;
        start(fault, name)?;
    }
    Ok(Effect::of(dead, "power is back"))
}

/// Everything answers with an error while the process runs: it has to end by itself.
pub(crate) async fn io_errors(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = any(fault).await?;
    let disk = fault.bed.disks.get(&name).context("it has no disk of its own")?;
    disk.cut()?;
    fault.begin("every access fails");
    let began = Instant::now();
    let watch = async {
        while fault.bed.with(&name, |daemon| Ok(daemon.is_running())).unwrap_or(false) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        began.elapsed()
    };
    let hold = Duration::from_millis(fault.planned.hold_ms);
    let ended = tokio::time::timeout(hold, watch).await.ok();
    let note = match ended {
        Some(after) => format!("it ended by itself after {:.1} s", after.as_secs_f64()),
        None => format!("it still ran after {:.1} s", hold.as_secs_f64()),
    };
    kill(fault, &name)?;
    disk.restart()?;
    start(fault, &name)?;
    Ok(Effect::of(ended.is_some(), note))
}

pub(crate) async fn full_disk(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = any(fault).await?;
    let disk = fault.bed.disks.get(&name).context("it has no disk of its own")?;
    tokio::task::block_in_place(|| disk.fill())?;
    let is_full = disk.try_write().is_err();
    fault.hold("no byte is left").await;
    disk.empty();
    let ended = fault.bed.with(&name, |daemon| Ok(!daemon.is_running()))?;
    if ended {
        start(fault, &name)?;
    }
    Ok(Effect::of(is_full, if ended { "there is room; it had ended" } else { "there is room" }))
}

pub(crate) async fn slow_disk(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = any(fault).await?;
    let disk = fault.bed.disks.get(&name).context("it has no disk of its own")?;
    disk.slow()?;
    // The first writes of a time slice are free.
    let writes = || (0..SLOW_WRITES).try_fold(Duration::ZERO, |took, _| Ok(took + disk.try_write()?));
    let writes = || -> std::io::Result<Duration> { writes() };
    let took = tokio::task::block_in_place(writes);
    fault.hold("writes wait for their turn").await;
    disk.hurry()?;
    let each = took.context("a write failed")? / SLOW_WRITES;
    Ok(Effect::of(each > Duration::from_millis(20), format!("a synced write took {} ms", each.as_millis())))
}

/// Its log is damaged while it is down: it must refuse it, or have read over places that this start does not need. Either
/// way it is removed and comes back empty, as an operator would have it: another start may read what was hit.
pub(crate) async fn bit_rot(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = follower(fault).await?;
    kill(fault, &name)?;
    let folder = fault.bed.with(&name, |daemon| Ok(daemon.folder.clone()))?;
    let has = |path: &Path, wanted: &str| path.components().any(|part| part.as_os_str() == wanted);
    let is_log = |path: &Path| has(path, "raft") && !has(path, "quarantine");
    let path = flip_bits(&folder, &mut fault.rng, is_log)?;
    let file = path.strip_prefix(&folder).unwrap_or(&path).display().to_string();
    fault.hold(&file).await;
    start(fault, &name)?;
    let began = Instant::now();
    loop {
        let code = fault.bed.with(&name, |daemon| Ok(daemon.exit_code()))?;
        if let Some(code) = code {
            replace(fault, &name).await?;
            return Ok(Effect::of(
                code == EXIT_DAMAGED,
                format!("it refused {file} with {code}, and was replaced"),
            ));
        }
        if is_back(fault, &name).await {
            replace(fault, &name).await?;
            return Ok(Effect::of(true, format!("{file}: what was hit was not in use; it was replaced")));
        }
        ensure!(began.elapsed() < BACK_MAX, "neither refused nor back after {file} was damaged");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) async fn clock(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = any(fault).await?;
    let offset = fault.rng.pick(OFFSETS_S).copied().unwrap_or(15);
    kill(fault, &name)?;
    fault.hold(&format!("boot clock {offset:+} s")).await;
    start_at(fault, &name, offset)
}

/// A follower is removed, emptied, and comes back as a new member.
pub(crate) async fn membership(fault: &mut Fault<'_>) -> Result<Effect> {
    let name = follower(fault).await?;
    fault.hold("it will be removed and come back empty").await;
    replace(fault, &name).await?;
    Ok(Effect::of(true, "it votes again, under a new id"))
}

async fn replace(fault: &mut Fault<'_>, name: &str) -> Result<()> {
    let address = fault.bed.address(name).to_owned();
    let began = Instant::now();
    // Other faults may keep a quorum from forming for a while.
    loop {
        let removed = match member_id(fault, &address).await {
            Ok(None) => break,
            Ok(Some(id)) => fault.bed.client.remove_coordinator(&id).await.map_err(anyhow::Error::from),
            Err(err) => Err(err),
        };
        match removed {
            Ok(_) => break,
            Err(err) if began.elapsed() > REMOVE_MAX => bail!("{name} could not be removed: {err:#}"),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    kill(fault, name)?;
    let others: Vec<String> = fault
        .bed
        .coordinators()
        .iter()
        .filter(|other| *other != name)
        .map(|other| fault.bed.address(other).to_owned())
        .collect();
    fault.bed.with(name, |daemon| {
        for entry in std::fs::read_dir(&daemon.folder).context("its folder cannot be read")?.flatten() {
            let path = entry.path();
            let gone =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            gone.with_context(|| format!("could not remove {}", path.display()))?;
        }
        daemon.join_through(&others);
        daemon.start()
    })?;
    let began = Instant::now();
    while !is_back(fault, name).await {
        // It gives up when it cannot join for long; its init system starts it again.
        if !fault.bed.with(name, |daemon| Ok(daemon.is_running()))? {
            start(fault, name)?;
        }
        ensure!(began.elapsed() < BACK_MAX, "{name} is not back after {} s", BACK_MAX.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The id under which the coordinator at this address is a member now.
async fn member_id(fault: &Fault<'_>, address: &str) -> Result<Option<String>> {
    let status = fault.bed.status().await?;
    let mut members = status.coordinators.into_iter().filter(|known| known.role != "removed");
    Ok(members.find(|known| known.address == address).map(|known| known.id))
}

/// Whether it votes and is reached.
async fn is_back(fault: &Fault<'_>, name: &str) -> bool {
    let Ok(status) = fault.bed.status().await else { return false };
    let address = fault.bed.address(name);
    status.coordinators.iter().any(|known| {
        known.address == address && known.reachable && (known.role == "leader" || known.role == "follower")
    })
}

/// As an upgrade goes: told to end, started again, waited for, then the next.
pub(crate) async fn rolling_restart(fault: &mut Fault<'_>) -> Result<Effect> {
    let names = fault.bed.coordinators();
    fault.claim(&names).await?;
    fault.hold("one after the other").await;
    for name in &names {
        signal(fault, name, Signal::TERM)?;
        let began = Instant::now();
        while fault.bed.with(name, |daemon| Ok(daemon.is_running()))? {
            ensure!(began.elapsed() < BACK_MAX, "{name} does not end when it is told to");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        start(fault, name)?;
        while !is_back(fault, name).await {
            ensure!(began.elapsed() < BACK_MAX, "{name} is not back");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(Effect::of(true, "all were restarted"))
}
