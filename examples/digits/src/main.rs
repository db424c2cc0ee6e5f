//! The digits worker as a program of its own: `cargo run -p outlast-digits`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match outlast_digits::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("digits: {err:#}");
            ExitCode::from(outlast_digits::exit_code(&err))
        }
    }
}
