//! One seed: a cluster comes up, things go wrong while clients work, everything is mended, and then all must be well within
//! bounds.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use mad_turmoil::time::SimClocksGuard;
use outlast_control::planted;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use turmoil::{Builder, Sim};

use crate::agent;
use crate::client::Asker;
use crate::coordinator::Machine;
use crate::faults::{Faults, millis};
use crate::node::SharedFleet;
use crate::oracle::{Oracle, Shared};

const COORDINATORS: usize = 3;
const CLIENTS: usize = 2;
const AGENTS: usize = 4;
const SETUP_MS: u64 = 60_000;
const TROUBLE_MS: u64 = 25_000;
/// For what was left open to be settled, and for all coordinators to be at the same place.
const HEAL_MS: u64 = 120_000;

/// What a run can be made to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Disks say that they have synced and have not: what is acknowledged is not durable.
    AcknowledgeBeforeSync,
    /// One of the control logic's own.
    Control(planted::Bug),
}

impl Bug {
    pub(crate) const ALL: &[(&str, Bug)] = &[
        ("acknowledge-before-sync", Bug::AcknowledgeBeforeSync),
        ("apply-asks-clock", Bug::Control(planted::Bug::ApplyAsksClock)),
        ("forget-requests", Bug::Control(planted::Bug::ForgetRequests)),
        ("seal-without-attempt", Bug::Control(planted::Bug::SealWithoutAttempt)),
        ("reuse-attempt-number", Bug::Control(planted::Bug::ReuseAttemptNumber)),
        ("start-cancelled", Bug::Control(planted::Bug::StartCancelled)),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Bug> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug)
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) violation: Option<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) simulated_ms: u64,
    pub(crate) calls: u64,
    pub(crate) unknown: u64,
    pub(crate) crashes: u64,
    pub(crate) cuts: u64,
    pub(crate) started: u64,
    pub(crate) restored: u64,
    jobs: usize,
}

impl Report {
    pub(crate) fn failed(why: String) -> Self {
        Self { violation: Some(why), ..Self::default() }
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{:.1} s simulated, {} calls, {} of unknown outcome, {} jobs, {} workers started, {} of them restored, {} \
             crashes, {} cuts, {} lines",
            self.simulated_ms as f64 / 1_000.0,
            self.calls,
            self.unknown,
            self.jobs,
            self.started,
            self.restored,
            self.crashes,
            self.cuts,
            self.trace.len()
        )
    }
}

/// Where the observer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Setup,
    Trouble,
    Heal,
    Settled,
}

/// Once in a process, which has no clock but the simulation's from then on: what libraries ask the system for, the date in an
/// answer's header or how long ago a stream was reset, must not make a run depend on the machine.
pub(crate) fn run(seed: u64, bug: Option<Bug>) -> Report {
    // Before anything asks: hash keys follow the seed, too. The folder's name must not depend on who runs beside this.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let prefix = format!("outlast-sim-{}-", std::process::id());
    let folder = match tempfile::Builder::new().prefix(&prefix).tempdir_in(scratch()) {
        Ok(folder) => folder,
        Err(err) => return Report::failed(format!("no folder for the run: {err}")),
    };
    let _simulated = SimClocksGuard::init();
    outlast_host::random::seed(seed);
    let _switched = match bug {
        Some(Bug::Control(bug)) => Some(planted::switch_on(bug)),
        _ => None,
    };
    let oracle = Shared::default();
    let mut builder = Builder::new();
    builder
        .simulation_duration(Duration::from_secs(600))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(15))
        .tcp_capacity(65_536)
        .epoch(UNIX_EPOCH + Duration::from_secs(1_780_000_000))
        .rng_seed(seed);
    let mut sim = builder.build();
    let machines: Vec<_> = (1..=COORDINATORS).map(|number| Machine::new(number, folder.path())).collect();
    for machine in &machines {
        let (one, oracle) = (machine.clone(), oracle.clone());
        sim.host(machine.name.as_str(), move || one.clone().run(oracle.clone()));
    }
    let addresses: Vec<String> = machines.iter().map(Machine::address).collect();
    let fleet = SharedFleet::default();
    for number in 1..=AGENTS {
        let name = format!("n{number}");
        fleet.borrow_mut().machines.entry(name.clone()).or_default();
        let (all, machines, seen) = (addresses.clone(), fleet.clone(), oracle.clone());
        let node = name.clone();
        sim.host(name.as_str(), move || {
            agent::run(node.clone(), all.clone(), machines.clone(), seen.clone())
        });
    }
    let (machines_seen, seen) = (fleet.clone(), oracle.clone());
    sim.host("watcher", move || watch(machines_seen.clone(), seen.clone()));
    let (phase, enough) = (Rc::new(Cell::new(Phase::Setup)), Rc::new(Cell::new(false)));
    let (at, seen, all) = (phase.clone(), oracle.clone(), addresses.clone());
    sim.client("observer", async move { observe(all, at, seen).await });

    let mut faults = None;
    let ended = go(&mut sim, SETUP_MS, &machines, &oracle, |_| phase.get() != Phase::Setup);
    if !ended {
        oracle.borrow_mut().broken("setup: no cluster of three came up".to_owned());
    } else {
        let names: Vec<String> = (1..=CLIENTS).map(|number| format!("u{number}")).collect();
        for name in &names {
            let (name, all) = (name.clone(), addresses.clone());
            let (seen, enough) = (oracle.clone(), enough.clone());
            sim.client(name.as_str().to_owned(), async move {
                Asker::new(&name, all, seen)?.ask_on(seed, enough).await;
                Ok(())
            });
        }
        let lying = bug == Some(Bug::AcknowledgeBeforeSync);
        let mut trouble = Faults::new(seed, machines.clone(), fleet.clone(), &names, lying, oracle.clone());
        go(&mut sim, TROUBLE_MS, &machines, &oracle, |sim| {
            trouble.step(sim);
            false
        });
        trouble.end(&mut sim);
        enough.set(true);
        phase.set(Phase::Heal);
        let well = go(&mut sim, HEAL_MS, &machines, &oracle, |_| {
            let applied: Vec<u64> = machines.iter().map(|machine| machine.applied.get()).collect();
            phase.get() == Phase::Settled && applied[0] > 0 && applied.iter().all(|one| *one == applied[0])
        });
        if !well {
            let applied: Vec<u64> = machines.iter().map(|machine| machine.applied.get()).collect();
            let why = format!("healing: not well in time: {:?}, applied {applied:?}", phase.get());
            oracle.borrow_mut().broken(why);
        }
        faults = Some((trouble.crashes, trouble.cuts));
    }
    let simulated_ms = millis(sim.elapsed());
    drop(sim);
    let oracle = std::mem::take(&mut *oracle.borrow_mut());
    let Oracle { trace, violation, submissions, calls, unknown, .. } = oracle;
    let (crashes, cuts) = faults.unwrap_or_default();
    let (started, restored) = (fleet.borrow().started, fleet.borrow().restored);
    let jobs = submissions.len();
    Report { violation, trace, simulated_ms, calls, unknown, crashes, cuts, started, restored, jobs }
}

/// Memory, where there is some: the few real files would cost real syncs.
fn scratch() -> std::path::PathBuf {
    let memory = std::path::PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Steps until the condition holds, time is up or something is broken. Whether it held.
fn go(
    sim: &mut Sim<'_>,
    within_ms: u64,
    machines: &[Machine],
    oracle: &Shared,
    mut until: impl FnMut(&mut Sim<'_>) -> bool,
) -> bool {
    let end = millis(sim.elapsed()) + within_ms;
    while millis(sim.elapsed()) < end && oracle.borrow().violation.is_none() {
        if until(sim) {
            return true;
        }
        if let Err(err) = sim.step() {
            oracle.borrow_mut().broken(format!("a host ended: {err}"));
        }
        for machine in machines {
            if let Some(reason) = machine.died.lock().expect("nobody panics with it").take() {
                oracle.borrow_mut().broken(format!("{} would have ended itself: {reason}", machine.name));
            }
        }
    }
    false
}

/// Looks at all nodes at once, which nobody in the cluster can.
async fn watch(fleet: SharedFleet, oracle: Shared) -> turmoil::Result {
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        fleet.borrow_mut().check_exclusive(&mut oracle.borrow_mut());
    }
}

/// Waits for the cluster, and settles what was left open when the faults are over.
async fn observe(addresses: Vec<String>, phase: Rc<Cell<Phase>>, oracle: Shared) -> turmoil::Result {
    let asker = Asker::new("observer", addresses, oracle.clone())?;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Ok(status) = asker.client.cluster_status().await else { continue };
        let voters = status
            .coordinators
            .iter()
            .filter(|one| matches!(one.role.as_str(), "leader" | "follower"))
            .count();
        if voters == COORDINATORS && !status.leader.is_empty() {
            break;
        }
    }
    phase.set(Phase::Trouble);
    while phase.get() != Phase::Heal {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let requests: Vec<String> = oracle.borrow().submissions.keys().cloned().collect();
    for request in requests {
        while !asker.submit(&request).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for turn in 1_u32.. {
        let active = asker.client.list_jobs(true, 0).await.map(|active| active.jobs);
        match active {
            Ok(jobs) if jobs.is_empty() => break,
            // What takes so long, for whoever reads the trace.
            Ok(jobs) if turn % 100 == 0 => {
                for job in jobs.iter().take(5) {
                    let why = asker.client.explain_job(&job.id).await;
                    oracle.borrow_mut().note(format!("{} {}: {why:?}", job.id, job.state));
                }
            }
            Ok(_) => {}
            Err(err) => oracle.borrow_mut().note(format!("observer lists jobs: {err}")),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let acknowledged = oracle.borrow().acknowledged();
    for (_, submission) in acknowledged {
        while !asker.read(&submission).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    phase.set(Phase::Settled);
    Ok(())
}
