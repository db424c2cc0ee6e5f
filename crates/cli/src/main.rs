//! The `outlast` binary: reads the command line, hands it to one command, and turns what came of it into an exit code.

mod bench;
mod checkpoint;
mod cli;
mod cluster;
mod connection;
mod demo;
mod example;
mod job;
mod local;
mod node;
mod problem;
mod serve;
mod term;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

const _: () = assert!(
    !outlast_host::IS_SIMULATED,
    "this build runs on a simulated machine: leave the feature `simulated` off"
);

/// Checked before the command line is parsed: a keeper starts with every worker and has to stay small.
fn keeper_dir() -> Option<OsString> {
    let mut args = std::env::args_os().skip(1);
    let is_keeper = args.next().is_some_and(|word| word == "keeper");
    args.next().filter(|dir| is_keeper && !dir.as_encoded_bytes().starts_with(b"-"))
}

fn main() -> ExitCode {
    if let Some(dir) = keeper_dir() {
        return outlast_process::keeper::run(std::path::Path::new(&dir));
    }
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(problem) => problem.show(),
    }
}
