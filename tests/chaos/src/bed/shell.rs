//! Commands of the system, with their words in the error.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs it and answers what it printed.
///
/// # Errors
/// When it cannot be started or fails; the message holds what it said.
pub(crate) fn run(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.with_context(|| format!("`{}` cannot be run", words[0]))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same behind a prefix that leads to another place.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_in(prefix: &[String], words: &[&str]) -> Result<String> {
    let all: Vec<&str> = prefix.iter().map(String::as_str).chain(words.iter().copied()).collect();
    run(&all)
}
