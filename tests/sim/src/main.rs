//! A whole cluster in one thread: the real coordinators with the real gRPC, HTTP/2 and openraft, over a simulated network
//! and a simulated disk under the log. `cargo xtask sim --cluster` builds and calls it; see README.md.

mod agent;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/assigned.rs"]
mod assigned;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/checkpoints.rs"]
mod checkpoints;
mod client;
mod coordinator;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/coordinators.rs"]
mod coordinators;
mod event;
mod faults;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/heart.rs"]
mod heart;
mod node;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/observations.rs"]
mod observations;
mod oracle;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/reconcile.rs"]
mod reconcile;
mod rng;
mod run;
#[allow(dead_code, reason = "the agent's own file; not all of it is asked here")]
#[path = "../../../crates/agent/src/session.rs"]
mod session;
mod upkeep;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use run::{Bug, Report, run};

const USAGE: &str = "\
sim --cluster --seeds N [--from S]          runs N seeds, on every core
sim --cluster --seed S [--bug NAME] [--trace]  runs one; with every line of it, and the log of the coordinators
sim --cluster --planted                     runs each planted bug until it is found
sim --cluster --twice S                     runs a seed twice and compares every line
sim --cluster --short                       what CI runs: 30 seeds, two of them twice, the planted bugs
";

const SHORT_SEEDS: u64 = 30;
/// A planted bug has to be found within so many seeds.
const BUG_SEEDS: u64 = 10;
const LINES_MAX: usize = 40;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let is_well = match words.as_slice() {
        ["--seeds", count] => number(count).map(|count| many(1, count)),
        ["--seeds", count, "--from", from] => {
            number(count).zip(number(from)).map(|(count, from)| many(from, count))
        }
        ["--seed", seed, rest @ ..] => number(seed).and_then(|seed| one(seed, rest)),
        ["--report", seed] => number(seed).map(|seed| report(seed, None)),
        ["--report", seed, bug] => {
            number(seed).zip(Bug::named(bug)).map(|(seed, bug)| report(seed, Some(bug)))
        }
        ["--twice", seed] => number(seed).map(twice),
        ["--planted"] => Some(planted()),
        ["--short"] => Some(many(1, SHORT_SEEDS) & twice(1) & twice(2) & planted()),
        _ => None,
    };
    match is_well {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// A seed that panics has failed like any other.
fn guarded(seed: u64, bug: Option<Bug>) -> Report {
    catch_unwind(AssertUnwindSafe(|| run(seed, bug))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Report::failed(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// In a process of its own: the counters and hash keys of a process that ran another seed before would make it another run.
fn apart(seed: u64, bug: Option<Bug>) -> Report {
    let report = || -> Result<Report, Box<dyn std::error::Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--report", &seed.to_string()]).args(bug.map(Bug::name));
        let output = command.stderr(Stdio::inherit()).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    report().unwrap_or_else(|err| Report::failed(format!("the run ended without a report: {err}")))
}

fn report(seed: u64, bug: Option<Bug>) -> bool {
    let report = guarded(seed, bug);
    let is_said = serde_json::to_writer(std::io::stdout().lock(), &report).is_ok();
    is_said && report.violation.is_none()
}

fn one(seed: u64, rest: &[&str]) -> Option<bool> {
    let bug = match rest {
        ["--bug", name, ..] => Some(Bug::named(name)?),
        _ => None,
    };
    let traced = rest.contains(&"--trace");
    if traced {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("outlast=info,warn"));
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let report = guarded(seed, bug);
    if traced {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    tell(seed, &report);
    Some(report.violation.is_none())
}

fn tell(seed: u64, report: &Report) {
    println!("seed {seed}: {}", report.summary());
    let Some(why) = &report.violation else { return };
    for line in &report.trace[report.trace.len().saturating_sub(LINES_MAX)..] {
        println!("    {}", line.chars().take(240).collect::<String>());
    }
    println!("seed {seed} broke {why}");
    println!("  again: cargo xtask sim --cluster --seed {seed} --trace");
}

fn batch(from: u64, count: u64, bug: Option<Bug>, stop_at_first: bool) -> Vec<(u64, Report)> {
    let next = AtomicU64::new(from);
    let end = AtomicU64::new(from + count);
    let done = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = apart(seed, bug);
                    if report.violation.is_some() && stop_at_first {
                        end.store(0, Ordering::Relaxed);
                    }
                    done.lock().expect("no thread panics with it").push((seed, report));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("all threads have ended");
    done.sort_by_key(|(seed, _)| *seed);
    done
}

/// The machine's, by system call: what libc says here is the simulation's (`run::run`).
fn machine_clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn many(from: u64, count: u64) -> bool {
    let started_ms = machine_clock_ms();
    let reports = batch(from, count, None, false);
    let sum = |of: fn(&Report) -> u64| reports.iter().map(|(_, report)| of(report)).sum::<u64>();
    println!(
        "{count} seeds, {:.1} min simulated, {} calls, {} of unknown outcome, {} workers started, {} of them restored, {} \
         crashes, {} cuts, in {:.1} s",
        sum(|report| report.simulated_ms) as f64 / 60_000.0,
        sum(|report| report.calls),
        sum(|report| report.unknown),
        sum(|report| report.started),
        sum(|report| report.restored),
        sum(|report| report.crashes),
        sum(|report| report.cuts),
        machine_clock_ms().saturating_sub(started_ms) as f64 / 1_000.0
    );
    let failed: Vec<_> = reports.iter().filter(|(_, report)| report.violation.is_some()).collect();
    failed.iter().for_each(|(seed, report)| tell(*seed, report));
    failed.is_empty()
}

fn planted() -> bool {
    let mut all_found = true;
    println!("{:24} {:>6}  found by", "planted bug", "within");
    for (name, bug) in Bug::ALL {
        let reports = batch(1, BUG_SEEDS, Some(*bug), true);
        let found = reports.iter().find_map(|(seed, report)| Some((seed, report.violation.as_ref()?)));
        let text = match found {
            Some((seed, why)) => format!("seed {seed}: {}", why.chars().take(110).collect::<String>()),
            None => "SURVIVES".to_owned(),
        };
        println!("{name:24} {BUG_SEEDS:>6}  {text}");
        all_found &= found.is_some();
    }
    all_found
}

fn twice(seed: u64) -> bool {
    let (first, second) = (apart(seed, None), apart(seed, None));
    let differs = first.trace.iter().zip(&second.trace).position(|(one, other)| one != other);
    match differs {
        None if first.trace.len() == second.trace.len() => {
            println!("seed {seed} is the same run twice, {} lines", first.trace.len());
            true
        }
        at => {
            let at = at.unwrap_or(first.trace.len().min(second.trace.len()));
            println!("seed {seed} differs at line {at} of {} and {}:", first.trace.len(), second.trace.len());
            for trace in [&first.trace, &second.trace] {
                println!("  {}", trace.get(at).map_or("(over)", String::as_str));
            }
            false
        }
    }
}
