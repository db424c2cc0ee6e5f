//! The outer process: makes the network, runs itself again inside its hub, and takes everything away afterwards, however
//! the inner one ended.
//!
//! ```text
//!  outer (this network)            inner (the hub's network)
//!  sweep what dead runs left
//!  make namespaces ──────────────> mount disks, start the cluster, run, check, report
//!  wait, or Ctrl-C  <───────────── exit code
//!  remove processes, mounts, namespaces; say what was left
//! ```

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed::{BedArgs, Form, Network, remove_leftovers, sweep};

/// Names the run to the inner process: it is inside.
const TAG: &str = "OUTLAST_CHAOS_TAG";
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs `inner` where this machine lets it run.
///
/// # Errors
/// When the form that was asked for cannot be had, or the inner process cannot be started.
pub(crate) fn enter(args: &BedArgs, inner: impl FnOnce(&Tag) -> Result<ExitCode>) -> Result<ExitCode> {
    if let Ok(text) = std::env::var(TAG) {
        return inner(&Tag::parse(&text)?);
    }
    sweep();
    let name = format!("occhaos{}", std::process::id());
    match args.form {
        Form::Loopback => {
            inner_with_cleaning(&Tag { name, form: Form::Loopback, lacking: Vec::new() }, inner)
        }
        Form::Namespaces => in_hub(&name, args),
        Form::Auto if rustix::process::geteuid().is_root() => match in_hub(&name, args) {
            Err(err) if err.downcast_ref::<NoNetwork>().is_some() => {
                println!("chaos: {err:#}; on loopback instead");
                let lacking = vec![format!("{err:#}")];
                inner_with_cleaning(&Tag { name, form: Form::Loopback, lacking }, inner)
            }
            done => done,
        },
        Form::Auto => {
            let lacking = vec!["not root: no namespaces, no disks, no cgroups".to_owned()];
            println!("chaos: {}; on loopback instead", lacking[0]);
            inner_with_cleaning(&Tag { name, form: Form::Loopback, lacking }, inner)
        }
    }
}

/// What the inner process has to know.
#[derive(Clone, Debug)]
pub(crate) struct Tag {
    /// Part of every name that the run gives to something outside its folder.
    pub(crate) name: String,
    pub(crate) form: Form,
    /// Why it is not the form with everything.
    pub(crate) lacking: Vec<String>,
}

impl Tag {
    fn parse(text: &str) -> Result<Self> {
        Ok(Self { name: text.to_owned(), form: Form::Namespaces, lacking: Vec::new() })
    }
}

/// Marks the one failure after which loopback is tried.
#[derive(Debug)]
struct NoNetwork;

impl std::fmt::Display for NoNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no network namespaces can be made")
    }
}

fn inner_with_cleaning(tag: &Tag, inner: impl FnOnce(&Tag) -> Result<ExitCode>) -> Result<ExitCode> {
    let done = inner(tag);
    told_of_leftovers(&tag.name, done)
}

fn in_hub(name: &str, args: &BedArgs) -> Result<ExitCode> {
    let network = Network::make(name, args.coordinators, args.agents).context(NoNetwork)?;
    let done = run_inside(name, &network);
    drop(network);
    told_of_leftovers(name, done)
}

/// Something that is left makes a good run a failed one.
fn told_of_leftovers(name: &str, done: Result<ExitCode>) -> Result<ExitCode> {
    let left = remove_leftovers(name);
    if left.is_empty() {
        return done;
    }
    done?;
    bail!("these were left over, and are removed now: {}", left.join(", "))
}

fn run_inside(name: &str, network: &Network) -> Result<ExitCode> {
    let own = std::env::current_exe().context("this program has no path")?;
    let enter = network.enter_hub();
    let mut child = Command::new(&enter[0])
        .args(&enter[1..])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(TAG, name)
        .spawn()
        .context("could not run inside the hub")?;
    let interrupted = on_interrupt()?;
    loop {
        if let Some(status) = child.try_wait().context("could not wait for the inner process")? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        if interrupted.load(Ordering::Relaxed) {
            // Ctrl-C went to the whole group; one that does not hear it is not waited for.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(ExitCode::from(130));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Becomes true with Ctrl-C or SIGTERM.
fn on_interrupt() -> Result<std::sync::Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = std::sync::Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let raised = std::sync::Arc::clone(&flag);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let terminate = signal(SignalKind::terminate());
            let Ok(mut terminate) = terminate else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            raised.store(true, Ordering::Relaxed);
        });
    });
    Ok(flag)
}
