//! The project's own commands: `cargo xtask test` and its parts.

mod python;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "\
cargo xtask COMMAND

  test            everything that CI runs: format, lints, unit and property tests, simulation, clusters of real
                  processes
  lint            format, lints and dependencies only
  unit            the tests of the crates, without clusters
  cluster [NAME]  clusters of real processes only; NAME picks tests whose name holds it
  python          the Python environment that some tests need; `test` and `unit` make it too
  fuzz [N]        every decoder, and `apply`, with N edited inputs of each kind (20000, optimised; `test` tries 256)
  kill [N]        the kill tests N times over (20), stopping at the first failure
  checkpoints [MINUTES]
                  kills at random while jobs do nothing but save (10 minutes); prints its seed, and OUTLAST_SEED repeats it
  sim ...         the control logic under simulation: --short (what `test` runs), --seeds N [--from S],
                  --seed S [--bug NAME] [--trace], --planted
  sim --cluster ...
                  real coordinators over a simulated network and disk: the same words, and --twice S (tests/sim/README.md)
  chaos [ARG]...  faults on a cluster of real processes: --minutes M --nemesis all|short|NAME,… --seed N (see
                  tests/chaos/README.md); `test` runs a short form
  soak [ARG]...   a busy machine and a jittered network: counts nodes that are declared lost though nothing is wrong
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let started = Instant::now();
    match words.as_slice() {
        ["test"] => {
            lint()?;
            unit()?;
            fuzz(None)?;
            sim(&["--short"])?;
            cluster_sim(&["--short"])?;
            cluster(None)?;
            chaos("run", SHORT_CHAOS)?;
        }
        ["lint"] => lint()?,
        ["python"] => python_env(),
        ["unit"] => unit()?,
        ["cluster"] => cluster(None)?,
        ["cluster", name] => cluster(Some(name))?,
        ["fuzz"] => fuzz(Some("20000"))?,
        ["fuzz", cases] => fuzz(Some(cases))?,
        ["sim", "--cluster", rest @ ..] => cluster_sim(rest)?,
        ["sim", rest @ ..] => sim(rest)?,
        ["chaos", args @ ..] => chaos("run", args)?,
        ["soak", args @ ..] => chaos("soak", args)?,
        ["kill"] => kill(20)?,
        ["kill", times] => kill(times.parse().context("the number of runs")?)?,
        ["checkpoints"] => checkpoints(10)?,
        ["checkpoints", minutes] => checkpoints(minutes.parse().context("the number of minutes")?)?,
        _ => {
            print!("{USAGE}");
            bail!("unknown command {:?}", words.join(" "));
        }
    }
    println!("\nxtask: {} done in {:.0} s", words.join(" "), started.elapsed().as_secs_f64());
    Ok(())
}

/// Two minutes with start, healing and the last look; the same faults each time, so that a red run is not a new one.
const SHORT_CHAOS: &[&str] = &["--minutes", "1.5", "--nemesis", "short", "--seed", "7"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where cargo puts what it builds. A relative folder is relative to the workspace's root for every step that is run here.
fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    root().join(target)
}

/// Runs cargo in the workspace's root and says how long it took.
fn cargo(what: &str, args: &[&str]) -> Result<()> {
    cargo_with(what, args, &[])
}

fn cargo_with(what: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    println!("\n== {what}: cargo {}", args.join(" "));
    let started = Instant::now();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(args).envs(env.iter().copied()).current_dir(root());
    let status = command.status().context("could not run cargo")?;
    ensure!(status.success(), "{what} failed ({status}); the lines above say why");
    println!("== {what}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn has(component: &str) -> bool {
    Command::new("cargo").args([component, "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Format, lints, dependencies. A toolchain without the component is told, not failed: the tests matter more.
fn lint() -> Result<()> {
    if has("fmt") {
        cargo("format", &["fmt", "--all", "--check"])?;
    } else {
        println!("== format: skipped, this toolchain has no rustfmt");
    }
    if has("clippy") {
        cargo("lints", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
        // What only a simulated machine has is in no other build.
        let simulated = ["clippy", "--profile", "sim", "-p", SIM, "--features", "simulated", "--quiet"];
        let args = [simulated.as_slice(), &["--", "-D", "warnings"]].concat();
        cargo_with("lints of the simulated machine", &args, SIM_FLAGS)?;
    } else {
        println!("== lints: skipped, this toolchain has no clippy");
    }
    if has("deny") {
        // Without advisories: their database comes from the network.
        cargo("dependencies", &["deny", "check", "bans", "licenses", "sources"])
    } else {
        println!(
            "== dependencies: skipped, cargo-deny is not installed; the tidy tests check licences and sources"
        );
        Ok(())
    }
}

/// The binary that the tests of the command line and of clusters run. All steps name the whole workspace: with fewer
/// packages cargo would choose other features of the dependencies, and build these again.
fn build() -> Result<()> {
    cargo("build", &["build", "--quiet", "--workspace", "--bins"])
}

/// A machine without Python or a package index still runs everything else: what needs it says that it is skipped.
fn python_env() {
    println!("\n== python environment: {}", python::folder().display());
    let started = Instant::now();
    match python::make() {
        Ok(true) => println!("== python environment: {:.0} s", started.elapsed().as_secs_f64()),
        Ok(false) => println!("== python environment: there already"),
        Err(err) => println!(
            "== python environment: not made ({err:#})\n== SKIPPED for want of it: the tests of the object store against \
             an S3 server (crates/blobs/tests/objects.rs)"
        ),
    }
}

fn unit() -> Result<()> {
    python_env();
    build()?;
    cargo("unit and property tests", &["test", "--quiet", "--workspace", "--exclude", "outlast-tests"])
}

fn cluster(name: Option<&str>) -> Result<()> {
    build()?;
    let mut args = vec!["test", "--workspace", "--test", "all", "--"];
    args.extend(name);
    // One cluster at a time: each has its own idea of time, and there are two cores.
    args.extend(["--test-threads", "1"]);
    cargo("clusters of real processes", &args)
}

/// The long form is worth an optimised build.
fn fuzz(cases: Option<&str>) -> Result<()> {
    let mut args = vec!["test", "--quiet", "--workspace", "--test", "fuzz"];
    let cases = match cases {
        None => "256",
        Some(cases) => {
            args.push("--release");
            cases
        }
    };
    cargo_with("fuzzing", &args, &[("PROPTEST_CASES", cases)])
}

/// In a profile and with a feature of its own, and so of this package alone: nothing else is ever built with planted bugs.
fn sim(words: &[&str]) -> Result<()> {
    let mut args =
        vec!["run", "--quiet", "--profile", "sim", "-p", "outlast-testkit", "--features", "planted"];
    args.extend(["--bin", "sim", "--"]);
    args.extend(words);
    cargo("simulation", &args)
}

const SIM: &str = "outlast-cluster-sim";
/// tokio takes a seed for its choices only where it is built as unstable.
const SIM_FLAGS: &[(&str, &str)] = &[("RUSTFLAGS", "--cfg tokio_unstable")];

/// As [`sim`], for the same reasons.
fn cluster_sim(words: &[&str]) -> Result<()> {
    let mut args = vec!["run", "--quiet", "--profile", "sim", "-p", SIM, "--features", "simulated"];
    args.extend(["--bin", "cluster-sim", "--"]);
    args.extend(words);
    cargo_with("simulated clusters", &args, SIM_FLAGS)
}

fn kill(times: u32) -> Result<()> {
    for run in 1..=times {
        println!("\n== kill tests, run {run} of {times}");
        cluster(Some("kill"))?;
    }
    Ok(())
}

/// The storm of the cluster tests, for longer than CI has time.
fn checkpoints(minutes: u64) -> Result<()> {
    build()?;
    let seconds = (minutes * 60).to_string();
    let args = ["test", "--workspace", "--test", "all", "--", "storm", "--test-threads", "1", "--nocapture"];
    cargo_with("kills at random under constant checkpointing", &args, &[("OUTLAST_STORM_SECONDS", &seconds)])
}

/// The harness is a program of its own: it runs itself again inside a network that it makes, where it may.
fn chaos(what: &str, args: &[&str]) -> Result<()> {
    build()?;
    // Built with the others, so run as it is: `cargo run` would choose other features of the dependencies.
    let program = target().join("debug/outlast-chaos");
    println!("\n== chaos {what}: {} {what} {}", program.display(), args.join(" "));
    let started = Instant::now();
    let status = Command::new(&program).arg(what).args(args).current_dir(root()).status();
    let status = status.with_context(|| format!("could not run {}", program.display()))?;
    ensure!(status.success(), "chaos {what} failed ({status}); the lines above say why");
    println!("== chaos {what}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
