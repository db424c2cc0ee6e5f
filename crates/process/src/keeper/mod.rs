//! The keeper's own program: `outlast keeper DIR`. One worker, from before its start until its record is handed over.
//!
//! ```text
//!  lock DIR ─► bind socket ─► launch ─┬─► supervise: deadline, worker, agent ─► end: drain, kill the rest, exit.json ─► linger ─► exit
//!                                     └─(program cannot start)─────────────────► exit.json (not started) ────────────┘
//! ```
//! Two threads: this one holds the deadline, the worker (whose parent must be a thread that lives as long as the keeper)
//! and the socket, and touches no disk while the worker runs; the pump thread moves output to the log. So a stalled disk
//! never delays a fence.

mod clients;
mod ending;
mod launch;
mod pump;
mod supervise;
mod timer;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use outlast_types::ExitStatus;
use rustix::fs::Mode;
use rustix::process::{chdir, set_child_subreaper, setsid, umask};

use self::clients::Clients;
use self::launch::Worker;
use self::pump::Pump;
use self::supervise::Supervisor;
use crate::cgroup::Cgroup;
use crate::handle::{KeeperLock, LockError};
use crate::log::LogWriter;
use crate::record::ExitFile;
use crate::spec::{KeeperSpec, SpecFile};
use crate::wire::Ready;
use crate::{boot_now, wall_now};

/// Runs the keeper of the worker whose spec is in `dir`; returns when its record has been handed over (or nobody asked
/// for it for a minute). Exit code 1 where it could not do its work at all; the reason is on standard error.
pub fn run(dir: &Path) -> ExitCode {
    match keep(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // Standard error is DIR/keeper.err. Nothing to be done if even that fails.
            let _ = writeln!(io::stderr(), "the keeper stops: {err}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("its folder could not be locked: {0}")]
    Lock(#[from] LockError),
    #[error("there is no spec.json in its folder")]
    NoSpec,
    #[error("{what} failed: {source}")]
    Io { what: &'static str, source: io::Error },
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> KeepError {
    move |source| KeepError::Io { what, source }
}

fn keep(dir: &Path) -> Result<(), KeepError> {
    // Out of the agent's session: whatever ends the agent (also its terminal) does not end the worker. It fails only for
    // a group leader, which is what we want to become.
    let _ = setsid();
    let worker_umask = umask(Mode::RWXG | Mode::RWXO);
    // Relative names from here on: the path of a socket has room for 108 bytes only.
    chdir(dir).map_err(|err| io_error("entering its folder")(err.into()))?;
    let here = Path::new(".");
    let _lock = KeeperLock::take(here)?;
    let file = SpecFile::read(here).map_err(io_error("reading its spec"))?.ok_or(KeepError::NoSpec)?;
    // Orphans of the worker become children of the keeper, so that it can find and end them without a cgroup too.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|err| io_error("becoming a subreaper")(err.into()))?;
    let _ = std::fs::remove_file("keeper.sock");
    let listener = UnixListener::bind("keeper.sock").map_err(io_error("binding its socket"))?;
    let clients = Clients::new(listener).map_err(io_error("setting up its socket"))?;
    let started = start(&file, worker_umask);
    match started {
        Ok((worker, cgroup, pump)) => {
            let mut supervisor =
                Supervisor::new(file.spec, worker, cgroup, clients).map_err(io_error("making its timer"))?;
            announce(&Ready::Started(supervisor.status()));
            let outcome = supervisor.watch();
            let exit = ending::end(&mut supervisor, &outcome, pump);
            supervisor.linger(exit);
        }
        Err(reason) => {
            let exit = not_started(&reason);
            exit.write(here).map_err(io_error("writing the exit record"))?;
            announce(&Ready::NotStarted(reason));
        }
    }
    Ok(())
}

/// Everything up to the running worker, in the order in which it can be undone.
fn start(file: &SpecFile, worker_umask: Mode) -> Result<(Worker, Option<Cgroup>, Pump), String> {
    let spec = &file.spec;
    if let Some(problem) = spec.problem() {
        return Err(problem.to_owned());
    }
    if fence_at(spec).is_some_and(|at| boot_now() >= at) {
        return Err("the node's lease ran out before the worker was started".to_owned());
    }
    let log = LogWriter::create(Path::new("log"), spec.log_segment_bytes, spec.log_segments_max)
        .map_err(|err| format!("its log could not be made: {err}"))?;
    let cgroup = match &spec.cgroup {
        Some(plan) => {
            Some(Cgroup::create(plan.clone()).map_err(|err| format!("its cgroup could not be made: {err}"))?)
        }
        None => None,
    };
    let launched =
        launch::launch(spec, &file.mark, cgroup.as_ref(), worker_umask).and_then(|(worker, pipes)| {
            Ok((worker, Pump::start(pipes, log).map_err(|err| format!("no log thread: {err}"))?))
        });
    match launched {
        Ok((worker, pump)) => Ok((worker, cgroup, pump)),
        Err(reason) => {
            if let Some(cgroup) = cgroup {
                cgroup.remove();
            }
            Err(reason)
        }
    }
}

/// When the killing of an exclusive worker has to begin (A3, A4 of the lease protocol).
fn fence_at(spec: &KeeperSpec) -> Option<outlast_types::BootTime> {
    spec.lease_deadline.filter(|_| spec.exclusive).map(|deadline| deadline.minus(spec.kill_budget_ms))
}

fn not_started(reason: &str) -> ExitFile {
    ExitFile {
        status: ExitStatus::NotStarted,
        ended_at: wall_now(),
        started_at: wall_now(),
        last_lines: Vec::new(),
        detail: reason.to_owned(),
        fenced: false,
        leftovers: 0,
        left: Vec::new(),
    }
}

/// Tells the agent that waits in `Keeper::spawn`, then lets go of its pipe. The agent may be dead; the worker does not care.
fn announce(ready: &Ready) {
    let mut line = serde_json::to_vec(ready).expect("plain data becomes JSON");
    line.push(b'\n');
    let mut stdout = io::stdout();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
