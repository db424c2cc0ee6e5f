//! One daemon: an `outlast coordinator` or `outlast agent` process.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::tree::find_processes;

/// A process of the cluster that can be killed, frozen and started again with the same folder and port.
pub struct Daemon {
    pub name: String,
    /// `host:port`
    pub address: String,
    pub folder: PathBuf,
    exe: PathBuf,
    args: Vec<String>,
    /// Words before the program: where, and under which clock, it runs.
    prefix: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(name: &str, address: String, root: &Path, exe: &Path, args: Vec<String>) -> Self {
        let folder = root.join(name);
        let log = root.join("logs").join(format!("{name}.log"));
        let (exe, prefix) = (exe.to_path_buf(), Vec::new());
        Self { name: name.to_owned(), address, folder, exe, args, prefix, log, child: None }
    }

    pub(crate) fn with_prefix(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    /// Words that stand before the program from the next start on. They must end in the program itself, in the same
    /// process (as `nsenter` and `unshare` do).
    pub fn set_prefix(&mut self, prefix: Vec<String>) {
        self.prefix = prefix;
    }

    pub fn prefix(&self) -> &[String] {
        &self.prefix
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// From the next start on it joins through these coordinators, should its folder be empty: one that was removed
    /// must not found a cluster of its own.
    pub fn join_through(&mut self, addresses: &[String]) {
        let mut kept = Vec::new();
        let mut args = std::mem::take(&mut self.args).into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--init" => {}
                "--join" => drop(args.next()),
                _ => kept.push(arg),
            }
        }
        for address in addresses {
            kept.extend(["--join".to_owned(), address.clone()]);
        }
        self.args = kept;
    }

    /// Starts the process; its output is appended to its log file.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// Like `start`, with more variables in its environment; the next start has them no more.
    ///
    /// # Errors
    /// See `start`.
    pub fn start_with(&mut self, env: &[(&str, &str)]) -> Result<()> {
        if let Some(parent) = self.log.parent() {
            fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display()))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("could not open {}", self.log.display()))?;
        let mut words = self.prefix.iter().map(OsStr::new).chain([self.exe.as_os_str()]);
        let child = Command::new(words.next().unwrap_or(self.exe.as_os_str()))
            .args(words)
            .args(&self.args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("could not share the log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {}", self.exe.display()))?;
        self.child = Some(child);
        Ok(())
    }

    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id() as i32)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The exit code, when it has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.as_mut()?.try_wait().ok().flatten()?.code()
    }

    /// The signal that ended it, when one did.
    pub fn exit_signal(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        self.child.as_mut()?.try_wait().ok().flatten()?.signal()
    }

    /// `kill -9` of this process alone; keepers and workers live on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it had ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `kill -9` of the process, its keepers and its workers: what a power cut does to a node.
    pub fn kill_tree(&mut self) {
        // Stopped first, so that nobody can start anything new between the look and the kill.
        self.signal(Signal::STOP);
        for found in find_processes(&self.folder) {
            send(found.pid, Signal::KILL);
        }
        self.kill();
        // Workers whose command line does not name the folder hang on keepers that do; a second look finds none.
        for found in find_processes(&self.folder) {
            send(found.pid, Signal::KILL);
        }
    }

    /// SIGTERM, SIGSTOP, SIGCONT.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            send(pid, signal);
        }
    }

    /// Keepers, workers and their children that are alive now.
    pub fn descendants(&self) -> Vec<crate::Found> {
        let own = self.pid();
        find_processes(&self.folder).into_iter().filter(|found| Some(found.pid) != own).collect()
    }

    /// The end of its log, for error messages.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Sends a signal to one process; an error means that it is gone.
pub(crate) fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_tree();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_founder_joins_and_founds_nothing() {
        let args = ["coordinator", "--init", "--listen", "a:1", "--join", "b:1"].map(str::to_owned).to_vec();
        let mut daemon = Daemon::new("c1", "a:1".to_owned(), Path::new("/none"), Path::new("outlast"), args);
        daemon.join_through(&["c:1".to_owned(), "d:1".to_owned()]);
        assert_eq!(daemon.args, ["coordinator", "--listen", "a:1", "--join", "c:1", "--join", "d:1"]);
    }

    #[test]
    fn the_prefix_runs_the_program_in_the_process_that_was_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = ["-c", "echo $$ $WHERE"].map(str::to_owned).to_vec();
        let mut daemon = Daemon::new("c1", String::new(), folder.path(), Path::new("/bin/sh"), args);
        daemon.set_prefix(vec!["env".to_owned(), "WHERE=elsewhere".to_owned()]);
        daemon.start().expect("it starts");
        let pid = daemon.pid().expect("it runs");
        while daemon.is_running() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(daemon.log_tail(1), format!("{pid} elsewhere"));
    }
}
