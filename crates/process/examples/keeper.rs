//! Keeper and agent as programs of their own, for the tests of this crate.
//!
//! `keeper keeper DIR` is a keeper, like `outlast keeper DIR`. `keeper agent DIR SPEC` is an agent with nothing else to do:
//! it spawns a keeper from a JSON spec, says so, and sleeps until it is killed.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use outlast_process::Keeper;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [verb, dir] if verb == "keeper" => outlast_process::keeper::run(&PathBuf::from(dir)),
        [verb, dir, spec] if verb == "agent" => {
            let spec = serde_json::from_slice(spec.as_encoded_bytes()).expect("a spec");
            let exe = std::env::current_exe().expect("own path");
            let keeper = Keeper::spawn(&exe, &PathBuf::from(dir), &spec).expect("a keeper");
            println!("{} {}", keeper.pid(), keeper.worker_pid());
            std::io::stdout().flush().expect("somebody reads");
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        _ => ExitCode::from(2),
    }
}
