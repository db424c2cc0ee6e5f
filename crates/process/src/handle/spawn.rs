//! Starts a keeper and waits until its worker runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Keeper, adopt};
use crate::spec::{INHERITED, KeeperSpec, SpecFile};
use crate::wire::Ready;
use crate::{boot_now, files};

/// Milliseconds on an idle machine; a machine in deep trouble gets this long before the start counts as failed.
const READY_WITHIN_MS: u64 = 15_000;
/// The keeper's first line is short; more than this is not one.
const READY_BYTES_MAX: usize = 8 << 10;

/// Why a worker does not run. Nothing of it is left behind but the folder.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("its folder {} could not be prepared", dir.display())]
    Prepare {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the keeper {} could not be started", exe.display())]
    Start {
        exe: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The keeper ran, the program could not; `detail` names it and says why.
    #[error("{detail}")]
    Program { detail: String },
    #[error("the keeper died at its start: {said}")]
    KeeperDied { said: String },
    #[error("the keeper did not start the worker within {} s and was killed", READY_WITHIN_MS / 1_000)]
    NotReady,
}

impl Keeper {
    /// Writes the spec, starts `exe keeper dir` out of this process's session and returns when the worker runs. `dir`
    /// must be new; it is made where it does not exist. Blocks for milliseconds (15 s at most).
    ///
    /// # Errors
    /// See `SpawnError`; `Program` is the user's to mend.
    pub fn spawn(exe: &Path, dir: &Path, spec: &KeeperSpec) -> Result<Self, SpawnError> {
        if let Some(problem) = spec.problem() {
            return Err(SpawnError::Invalid(problem));
        }
        let dir = prepare(dir, spec).map_err(|source| SpawnError::Prepare { dir: dir.to_owned(), source })?;
        let started = start(exe, &dir).map_err(|source| SpawnError::Start { exe: exe.to_owned(), source })?;
        let (mut child, mut stdout) = started;
        let ready = read_ready(&mut stdout);
        if ready.is_none() {
            let is_dead = matches!(child.try_wait(), Ok(Some(_)));
            let _ = child.kill();
            let _ = child.wait();
            // Its death took the worker along; this takes what the worker had started.
            let _ = adopt::end_remains(&dir);
            return Err(if is_dead {
                SpawnError::KeeperDied { said: said(&dir) }
            } else {
                SpawnError::NotReady
            });
        }
        reap_later(child);
        match ready.expect("checked above") {
            Ready::Started(status) => Ok(Self::new(&dir, &status)),
            Ready::NotStarted(detail) => Err(SpawnError::Program { detail }),
        }
    }
}

fn prepare(dir: &Path, spec: &KeeperSpec) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    files::create_private_dir(&dir)?;
    if dir.join("spec.json").exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it belongs to another keeper already"));
    }
    let mut spec = spec.clone();
    spec.cwd = std::path::absolute(&spec.cwd)?;
    let mark = format!("{}-{}.{}.{}", spec.attempt.file_name(), spec.rank, std::process::id(), boot_now().0);
    SpecFile::new(spec, mark).write(&dir)?;
    Ok(dir)
}

fn start(exe: &Path, dir: &Path) -> io::Result<(Child, ChildStdout)> {
    let errors = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("keeper.err"))?;
    let mut command = Command::new(exe);
    command.arg("keeper").arg(dir).env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn()?;
    let stdout = child.stdout.take().expect("asked for a pipe");
    Ok((child, stdout))
}

/// The keeper's first line; `None` when it ended or did not say anything in time.
fn read_ready(stdout: &mut ChildStdout) -> Option<Ready> {
    let until = boot_now().plus(READY_WITHIN_MS);
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < READY_BYTES_MAX {
        let left = until.since(boot_now());
        let timeout = Timespec {
            tv_sec: (left / 1_000).cast_signed(),
            tv_nsec: (left % 1_000).cast_signed() * 1_000_000,
        };
        let polled = poll(&mut [PollFd::new(&*stdout, PollFlags::IN)], Some(&timeout));
        if left == 0 || polled == Ok(0) {
            return None;
        }
        let mut buffer = [0; 1024];
        match stdout.read(&mut buffer) {
            Ok(count) if count > 0 => line.extend_from_slice(&buffer[..count]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
    serde_json::from_slice(&line).ok()
}

/// While this process lives, its keepers are its children and somebody has to collect them. After it, init does.
fn reap_later(mut child: Child) {
    let reaper = std::thread::Builder::new().name("keeper-reaper".to_owned()).stack_size(64 << 10);
    // Without the thread a finished keeper stays a zombie until this process ends, which harms nobody.
    let _ = reaper.spawn(move || child.wait());
}

fn said(dir: &Path) -> String {
    let mut text = String::new();
    let read = File::open(dir.join("keeper.err")).and_then(|file| file.take(2_000).read_to_string(&mut text));
    match read {
        Ok(count) if count > 0 => text.trim().to_owned(),
        _ => "it said nothing".to_owned(),
    }
}
