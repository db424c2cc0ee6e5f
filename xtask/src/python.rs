//! The Python environment of the tests: servers of other people that ours must work with, pinned, inside the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The server's own `server` extra brings every service of it and three times the files; this is S3 and HTTP.
const PACKAGES: &str = include_str!("../python-requirements.txt");
/// Holds what was installed; written last, so that a half-made environment is made again.
const STAMP: &str = "installed.txt";

/// Where the tests look for it: beside the build's output.
pub(crate) fn folder() -> PathBuf {
    super::target().join("python-env")
}

/// Makes it unless it is there with these packages; whether it had to.
pub(crate) fn make() -> Result<bool> {
    let folder = folder();
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|text| text == PACKAGES) {
        return Ok(false);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).context("the old environment cannot be removed")?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder), "python3 -m venv")?;
    let list = folder.join("requirements.txt");
    fs::write(&list, PACKAGES).context("could not write the list of packages")?;
    let mut install = Command::new(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    // A machine without a package index is told so in seconds, not minutes.
    install.args(["--retries", "1", "--timeout", "15", "-r"]).arg(&list);
    run(&mut install, "pip install")?;
    stamp(&folder)?;
    Ok(true)
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("could not run {what}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
    ensure!(output.status.success(), "{what} failed ({}): {last}", output.status);
    Ok(())
}

fn stamp(folder: &Path) -> Result<()> {
    fs::write(folder.join(STAMP), PACKAGES).context("could not write the environment's stamp")
}
