//! The keeper's program for this crate's tests: `keeper keeper DIR`, as `outlast keeper DIR` in the real binary.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let dir = std::env::args_os().nth(2).map(PathBuf::from).expect("usage: keeper keeper DIR");
    outlast_process::keeper::run(&dir)
}
