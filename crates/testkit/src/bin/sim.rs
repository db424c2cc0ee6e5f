//! Runs seeds: many at once, one with its trace, the short form of CI, the planted bugs. `cargo xtask sim` builds and calls it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use outlast_testkit::{Bug, Coverage, Report, run};

const USAGE: &str = "\
sim --seeds N [--from S]          runs N seeds, on every core
sim --seed S [--bug NAME] [--trace]  runs one; with every line of it
sim --planted                     runs each planted bug until it is found
sim --short                       what CI runs: the list of seeds, determinism, 300 seeds, the planted bugs
";

/// Seeds that CI runs each time; the batch has to meet every required kind of trouble.
const SHORT_SEEDS: u64 = 300;
/// A smaller batch may well miss a kind of trouble.
const COVERAGE_FROM: u64 = 200;
/// Failures that are told in full.
const TOLD_MAX: usize = 5;
/// Lines of a failing seed's trace.
const LINES_MAX: usize = 30;
/// Seeds that are run twice, line by line.
const TWICE: [u64; 3] = [3, 4, 5];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let is_well = match words.as_slice() {
        ["--seeds", count] => number(count).map(|count| many(1, count)),
        ["--seeds", count, "--from", from] => {
            number(count).zip(number(from)).map(|(count, from)| many(from, count))
        }
        ["--planted"] => Some(planted()),
        ["--short"] => Some(short()),
        ["--seed", seed, rest @ ..] => number(seed).and_then(|seed| one(seed, rest)),
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
fn guarded(seed: u64, bug: Option<Bug>) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, bug, false))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

fn failure(outcome: &Result<Report, String>) -> Option<String> {
    match outcome {
        Ok(report) => {
            let broken = report.violation.as_ref()?;
            Some(format!(
                "invariant {} at {:.3} s: {}",
                broken.invariant,
                broken.at_us as f64 / 1e6,
                broken.why
            ))
        }
        Err(panic) => Some(format!("panic: {panic}")),
    }
}

fn one(seed: u64, rest: &[&str]) -> Option<bool> {
    let traced = rest.contains(&"--trace");
    let bug = match rest {
        ["--bug", name, ..] => Some(Bug::all().into_iter().find(|bug| bug.name == *name)?),
        [] | ["--trace"] => None,
        _ => return None,
    };
    let report = run(seed, bug, traced);
    report.trace.iter().for_each(|line| println!("{line}"));
    println!(
        "seed {seed}: {} events, {:.0} s simulated, digest {:016x}",
        report.events,
        report.simulated_us as f64 / 1e6,
        report.digest
    );
    let why = failure(&Ok(report));
    if let Some(why) = &why {
        println!("seed {seed} broke {why}");
    }
    Some(why.is_none())
}

/// Runs the seeds on every core; stops early where `enough` says so.
fn batch(
    from: u64,
    count: u64,
    bug: Option<Bug>,
    enough: impl Fn(usize) -> bool + Sync,
) -> Vec<(u64, Result<Report, String>)> {
    let next = AtomicU64::new(from);
    let over = AtomicBool::new(false);
    let done = Mutex::new(Vec::new());
    let failures = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = guarded(seed, bug);
                    if failure(&outcome).is_some() {
                        let count = failures.fetch_add(1, Ordering::Relaxed) + 1;
                        over.fetch_or(enough(count as usize), Ordering::Relaxed);
                    }
                    done.lock().expect("no thread panics with it").push((seed, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("all threads have ended");
    done.sort_by_key(|(seed, _)| *seed);
    done
}

fn many(from: u64, count: u64) -> bool {
    let started = Instant::now();
    let outcomes = batch(from, count, None, |failures| failures >= 50);
    let mut coverage = Coverage::default();
    let (mut events, mut simulated_us) = (0, 0);
    for report in outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()) {
        coverage.add(&report.coverage);
        events += report.events;
        simulated_us += report.simulated_us;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds, {events} events, {:.1} h simulated, in {seconds:.1} s: {:.0} events/s",
        outcomes.len(),
        simulated_us as f64 / 3.6e9,
        events as f64 / seconds
    );
    let met: Vec<String> =
        coverage.counts().iter().map(|(name, count, _)| format!("{name} {count}")).collect();
    met.chunks(6).for_each(|line| println!("  {}", line.join(", ")));
    let failed: Vec<_> =
        outcomes.iter().filter_map(|(seed, outcome)| Some((*seed, failure(outcome)?))).collect();
    for (seed, why) in failed.iter().take(TOLD_MAX) {
        tell(*seed, why);
    }
    for (seed, why) in failed.iter().skip(TOLD_MAX) {
        println!("seed {seed} broke {why}");
    }
    let missed: Vec<_> =
        coverage.counts().into_iter().filter(|(_, count, required)| *required && *count == 0).collect();
    if count >= COVERAGE_FROM && !missed.is_empty() {
        let names: Vec<&str> = missed.iter().map(|(name, ..)| *name).collect();
        println!("REJECTED: no run of this batch met {}", names.join(", "));
        return false;
    }
    failed.is_empty()
}

fn tell(seed: u64, why: &str) {
    println!("\nseed {seed} broke {why}");
    if let Ok(report) = catch_unwind(|| run(seed, None, true)) {
        let skip = report.trace.len().saturating_sub(LINES_MAX);
        for line in &report.trace[skip..] {
            println!("    {}", line.chars().take(240).collect::<String>());
        }
    }
    println!("  again: cargo xtask sim --seed {seed} --trace");
    println!("  keep it: add {seed} to crates/testkit/seeds.txt");
}

fn planted() -> bool {
    let mut all_found = true;
    println!("{:28} {:>6}  found by", "planted bug", "within");
    for bug in Bug::all() {
        let outcomes = batch(1, bug.within, Some(bug), |failures| failures > 0);
        let found = outcomes.iter().find_map(|(seed, outcome)| Some((*seed, failure(outcome)?)));
        let text = match &found {
            Some((seed, why)) => format!("seed {seed}: {}", why.chars().take(110).collect::<String>()),
            None => "SURVIVES".to_owned(),
        };
        println!("{:28} {:>6}  {text}", bug.name, bug.within);
        all_found &= found.is_some();
    }
    all_found
}

fn kept_seeds() -> Vec<u64> {
    let lines = include_str!("../../seeds.txt").lines();
    let seed = |line: &str| line.split('#').next().and_then(|text| text.trim().parse().ok());
    lines.filter_map(seed).collect()
}

fn short() -> bool {
    let mut is_well = true;
    for seed in kept_seeds() {
        if let Some(why) = failure(&guarded(seed, None)) {
            tell(seed, &why);
            is_well = false;
        }
    }
    println!("{} kept seeds replayed", kept_seeds().len());
    for seed in TWICE {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        if first.trace != second.trace || first.digest != second.digest {
            println!("seed {seed} is not the same run twice");
            is_well = false;
        }
    }
    println!("{} seeds are the same run twice, line by line", TWICE.len());
    is_well &= many(1, SHORT_SEEDS);
    is_well & planted()
}
