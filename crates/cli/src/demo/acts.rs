//! The three disturbances, each with what it costs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use outlast_local::LocalCluster;
use outlast_types::WallTime;
use rustix::process::Signal;

use super::observer::{Observer, Seen};
use super::report::Report;
use super::screen::Screen;
use crate::local::wall_now;

/// A busy machine may take several times as long as the table at the end says.
const DEADLINE: Duration = Duration::from_secs(90);

fn seconds(from: WallTime, to: WallTime) -> f64 {
    to.since(from) as f64 / 1_000.0
}

/// Waits for a running attempt that has made steps beyond its start, and has a newer seal than it started from.
async fn settle(observer: &Observer, more_steps: u64) -> Result<u64> {
    let settled = |seen: &Seen| {
        seen.running && seen.step >= seen.restore_step + more_steps && seen.sealed_step > seen.restore_step
    };
    observer.wait("steps and a sealed checkpoint", DEADLINE, settled).await?;
    Ok(observer.read(|seen| seen.attempt))
}

/// What a node's loss costs, from the events and steps that were seen.
struct Recovery {
    detect_s: f64,
    reschedule_s: f64,
    first_step_s: f64,
    repeated: u64,
}

async fn recovery(observer: &Observer, node: &str, before: u64, since: WallTime) -> Result<Recovery> {
    observer.wait("the job to go on", DEADLINE, |seen| seen.new_ground_after(before).is_some()).await?;
    observer.read(|seen| {
        let lost = seen.event_since(since, |event| event.kind == "node_lost" && event.node == node);
        let lost = lost.context("the node's loss is not in the log")?;
        let started = seen.event_since(lost, |event| event.kind == "attempt_started");
        let started = started.context("the new attempt is not in the log")?;
        Ok(Recovery {
            detect_s: seconds(since, lost),
            reschedule_s: seconds(lost, started),
            first_step_s: seconds(since, seen.new_ground_after(before).context("no new step was seen")?),
            repeated: seen.last_step_until(before).saturating_sub(seen.restore_step),
        })
    })
}

/// `kill -9` of everything on the node of rank 1.
pub(super) async fn kill_node(
    cluster: &mut LocalCluster,
    observer: &Observer,
    screen: &Screen,
    report: &mut Report,
) -> Result<()> {
    let before = settle(observer, 150).await?;
    let node = observer.read(|seen| seen.nodes.get(1).cloned()).context("rank 1 has no node")?;
    screen.say(&format!("KILL  node {node}: agent, keeper and worker of rank 1 get kill -9"));
    let since = wall_now();
    cluster.agent_mut(&node)?.kill_tree();
    let recovery = recovery(observer, &node, before, since).await?;
    report.detect_s = recovery.detect_s;
    report.reschedule_s = recovery.reschedule_s;
    report.first_step_s = recovery.first_step_s;
    report.steps_repeated += recovery.repeated;
    screen.say(&format!("      new steps {:.2} s after the kill", recovery.first_step_s));
    // The machine comes back, empty-handed, as machines do.
    cluster.agent_mut(&node)?.start()
}

/// `kill -9` of the leader, while a client keeps writing.
pub(super) async fn kill_leader(
    cluster: &mut LocalCluster,
    observer: &Observer,
    screen: &Screen,
    report: &mut Report,
) -> Result<()> {
    let before = settle(observer, 150).await?;
    let leader = cluster.leader().await?;
    screen.say(&format!("KILL  the leader, {}, gets kill -9", cluster.coordinators[leader].name));
    let node = cluster.agents[0].name.clone();
    let started = Instant::now();
    cluster.coordinators[leader].kill();
    // A durable write that changes nothing else; the client retries it until it is acknowledged.
    let label = BTreeMap::from([("demo".to_owned(), "leader-gap".to_owned())]);
    cluster.client().label_node(&node, label, Vec::new()).await.context("no write was acknowledged again")?;
    report.leader_gap_s = started.elapsed().as_secs_f64();
    screen.say(&format!("      writes are acknowledged again after {:.2} s", report.leader_gap_s));
    cluster.coordinators[leader].start()?;
    let now = observer.read(|seen| seen.attempt);
    if now == before {
        screen.say("      the training noticed nothing: same attempt, no step repeated");
    }
    Ok(())
}

/// SIGSTOP of an agent for longer than its lease: to the cluster a partition, to its worker nothing at all.
pub(super) async fn freeze_agent(
    cluster: &mut LocalCluster,
    observer: &Observer,
    screen: &Screen,
    report: &mut Report,
) -> Result<()> {
    let before = settle(observer, 300).await?;
    let node = observer.read(|seen| seen.nodes.get(1).cloned()).context("rank 1 has no node")?;
    screen.say(&format!("FREEZE agent of {node}: it says nothing more, as if cut off; its worker goes on"));
    let since = wall_now();
    cluster.agent_mut(&node)?.signal(Signal::STOP);
    // The old attempt goes on stepping until it is stopped: those steps do not count as new.
    let lost = |seen: &Seen| {
        seen.event_since(since, |event| event.kind == "node_lost" && event.node == node).is_some()
    };
    observer.wait("the frozen node's loss", DEADLINE, lost).await?;
    let recovery = recovery(observer, &node, before, since).await?;
    report.freeze_detect_s = recovery.detect_s;
    report.steps_repeated += recovery.repeated;
    let agent = cluster.agent_mut(&node)?;
    agent.signal(Signal::CONT);
    screen.say(&format!("THAW  agent of {node}: its worker belongs to an attempt that is over"));
    let started = Instant::now();
    while !cluster.agent_mut(&node)?.descendants().is_empty() {
        anyhow::ensure!(started.elapsed() < DEADLINE, "the stale worker on {node} was not stopped");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    screen.say("      the stale worker was stopped; it could not have sealed anything");
    Ok(())
}
