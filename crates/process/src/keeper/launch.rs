//! Starts the worker's program: own process group, own cgroup, bound to the keeper's life.
#![expect(unsafe_code, reason = "what a child does between fork and exec can only be said through pre_exec")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};

use outlast_types::WallTime;
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal, umask};

use crate::cgroup::Cgroup;
use crate::procfs::MARK_VARIABLE;
use crate::spec::{INHERITED, KeeperSpec};
use crate::wall_now;

/// Where the agent has no `PATH` either.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// When the whole machine runs out of memory, the kernel takes a worker before its keeper or the agent.
const OOM_SCORE: &str = "300";

pub(super) struct Worker {
    pub(super) pid: Pid,
    /// Readable when the process has ended.
    pub(super) ended: OwnedFd,
    pub(super) started_at: WallTime,
}

pub(super) struct Pipes {
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

/// To be called by the keeper's main thread only: the parent-death signal fires when the *thread* that forked ends.
///
/// The error is a sentence for people.
pub(super) fn launch(
    spec: &KeeperSpec,
    mark: &str,
    cgroup: Option<&Cgroup>,
    worker_umask: Mode,
) -> Result<(Worker, Pipes), String> {
    if !spec.cwd.is_dir() {
        return Err(format!("its working folder {} does not exist", spec.cwd.display()));
    }
    let joins = match cgroup {
        Some(cgroup) => {
            cgroup.join_files().map_err(|err| format!("its cgroup could not be opened: {err}"))?
        }
        None => Vec::new(),
    };
    let mut command = command(spec, mark);
    before_exec(&mut command, joins);
    let private = umask(worker_umask);
    let spawned = command.spawn();
    umask(private);
    let mut child = spawned.map_err(|err| why(spec, &err))?;
    let pid = Pid::from_child(&child);
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
    let ended = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(err) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "the kernel gives no handle on a process (Linux 5.3 or newer is needed): {err}"
            ));
        }
    };
    let stdout = child.stdout.take().expect("asked for a pipe");
    let stderr = child.stderr.take().expect("asked for a pipe");
    Ok((Worker { pid, ended, started_at: wall_now() }, Pipes { stdout, stderr }))
}

fn command(spec: &KeeperSpec, mark: &str) -> Command {
    let mut command = Command::new(&spec.command[0]);
    command.args(&spec.command[1..]).current_dir(&spec.cwd).env_clear();
    command.env("PATH", PATH_DEFAULT);
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(&spec.env).env(MARK_VARIABLE, mark);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command
}

fn before_exec(command: &mut Command, joins: Vec<File>) {
    let keeper = rustix::process::getpid();
    let in_child = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(keeper) {
            // The keeper died before the signal was armed.
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        for file in &joins {
            rustix::io::write(file, b"0")?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe things may happen. The closure makes three kinds of system
    // calls (prctl, getppid, write) through rustix, which issues them directly; it allocates nothing, takes no lock and
    // its errors are plain numbers.
    unsafe {
        command.pre_exec(in_child);
    }
}

fn why(spec: &KeeperSpec, err: &io::Error) -> String {
    let program = &spec.command[0];
    match err.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            format!("the program {program:?} does not exist (or the interpreter in its first line does not)")
        }
        io::ErrorKind::NotFound => {
            let path = spec.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
            format!(
                "the program {program:?} was not found in PATH ({})",
                path.as_deref().unwrap_or(PATH_DEFAULT)
            )
        }
        io::ErrorKind::PermissionDenied => format!("the program {program:?} may not be executed: {err}"),
        _ => format!("the program {program:?} could not be started: {err}"),
    }
}
