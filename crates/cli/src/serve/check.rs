//! The look at a coordinator's folder before the coordinator opens it.
//!
//! sled panics on many kinds of damage, and a panic ends a release build. So a child process opens the log first: when
//! that ends the child, the folder goes into quarantine and a person is told, instead of a daemon that aborts at each
//! start without a word.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use outlast_consensus::{
    FormerMember, OpenError, examine_folder, former_member, quarantine_unopenable, verify_folder,
};

use super::coordinator::{folder_exit, way_back};
use crate::problem::{Exit, Problem};

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    dir: PathBuf,
    /// Change nothing, not even the name of a damaged snapshot
    #[arg(long)]
    look: bool,
}

impl CheckArgs {
    /// Whatever is found in an orderly way the coordinator will find too, and say better; what counts is to come back.
    pub(crate) fn run(self) -> ExitCode {
        if self.look {
            // What it found is found again by who asked.
            return examine_folder(&self.dir, false).map_or(Exit::Failed, |_| Exit::Done).into();
        }
        match verify_folder(&self.dir, false) {
            Err(OpenError::Disk(_)) => Exit::Folder.into(),
            _ => Exit::Done.into(),
        }
    }
}

/// Tries an existing folder in a child process; `init`: a cluster would be made in an empty one.
///
/// # Errors
/// The folder cannot be used and a start would not help.
pub(super) fn check_folder(dir: &Path, init: bool) -> Result<(), Problem> {
    if !dir.join("identity").exists() {
        return former_member(dir).filter(|_| init).map_or(Ok(()), |former| Err(was_member(dir, &former)));
    }
    match std::env::current_exe() {
        Ok(exe) => try_in_child(Command::new(exe).arg("coordinator-check").arg(dir), dir),
        Err(error) => {
            tracing::warn!(%error, "the folder is opened without a try before");
            Ok(())
        }
    }
}

/// Whether a stopped coordinator's folder can be opened without an end of the process that tries; else the signal. Moves
/// nothing.
pub(crate) fn opens_in_child(dir: &Path) -> Result<(), i32> {
    let Ok(exe) = std::env::current_exe() else { return Ok(()) };
    let mut check = Command::new(exe);
    check
        .arg("coordinator-check")
        .arg("--look")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match check.status().ok().and_then(died_of_the_log) {
        Some(signal) => Err(signal),
        None => Ok(()),
    }
}

fn try_in_child(check: &mut Command, dir: &Path) -> Result<(), Problem> {
    match check.stdin(Stdio::null()).stdout(Stdio::null()).status() {
        Ok(status) => match died_of_the_log(status) {
            Some(signal) => Err(set_aside(dir, signal)),
            None => Ok(()),
        },
        Err(error) => {
            tracing::warn!(%error, "the folder is opened without a try before");
            Ok(())
        }
    }
}

/// The signal, where the child ended itself. One that was killed from outside (a stop of the service, no memory) says
/// nothing about the log.
fn died_of_the_log(status: ExitStatus) -> Option<i32> {
    use rustix::process::Signal;
    let own = [Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::TRAP];
    status.signal().filter(|signal| own.iter().any(|own| own.as_raw() == *signal))
}

fn set_aside(dir: &Path, signal: i32) -> Problem {
    let error = quarantine_unopenable(dir, &format!("ended with signal {signal}"));
    let problem = Problem::new(folder_exit(&error), "the coordinator did not start").because_of(&error);
    match error {
        OpenError::Quarantined { coordinator, .. } => way_back(problem, &coordinator.to_string()),
        _ => problem,
    }
}

fn was_member(dir: &Path, former: &FormerMember) -> Problem {
    let FormerMember { cluster_id, coordinator, lies_in } = former.clone();
    let error = OpenError::WasMember { path: dir.to_owned(), cluster_id, coordinator, lies_in };
    let problem = Problem::new(folder_exit(&error), "the coordinator did not start").because_of(&error);
    way_back(problem, &coordinator.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: &str =
        r#"{"format": 1, "cluster_id": "c-1", "coordinator": "c2", "advertise": "a:1", "founder": null}"#;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("raft")).expect("made");
        std::fs::write(dir.path().join("identity"), IDENTITY).expect("written");
        dir
    }

    fn child(script: &str, dir: &Path) -> Result<(), Problem> {
        try_in_child(Command::new("sh").args(["-c", script]), dir)
    }

    #[test]
    fn a_log_that_ends_its_opener_is_set_aside_with_the_way_back() {
        let dir = folder();
        let told = format!("{:?}", child("kill -ABRT $$", dir.path()).expect_err("damaged"));
        for part in ["Folder", "ended with signal 6", "quarantine", "cluster remove c2", "--join"] {
            assert!(told.contains(part), "{part:?} in {told}");
        }
        assert!(!dir.path().join("identity").exists() && !dir.path().join("raft").exists());
        check_folder(dir.path(), false).expect("it may join again");
        let told = format!("{:?}", check_folder(dir.path(), true).expect_err("it must not found"));
        assert!(told.contains("Folder") && told.contains("c2 of cluster c-1"), "{told}");
    }

    #[test]
    fn other_ends_of_the_child_say_nothing_about_the_log() {
        let dir = folder();
        for script in ["exit 0", "exit 78", "exit 101", "kill -KILL $$", "kill -TERM $$"] {
            child(script, dir.path()).unwrap_or_else(|problem| panic!("{script}: {problem:?}"));
        }
        assert!(dir.path().join("identity").exists());
        assert!(try_in_child(&mut Command::new("/nonexistent"), dir.path()).is_ok());
        check_folder(&dir.path().join("none"), true).expect("a fresh folder");
    }
}
