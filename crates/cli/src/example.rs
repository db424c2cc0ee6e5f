//! `outlast example`: workers that are built in, so that a first job needs nothing but this binary.

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(crate) struct ExampleArgs {
    #[command(subcommand)]
    example: Example,
}

#[derive(Debug, Subcommand)]
enum Example {
    /// Train a small network on handwritten digits; a worker on the Rust SDK
    #[command(disable_help_flag = true)]
    Digits {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
}

impl ExampleArgs {
    pub(crate) fn run(self) -> ExitCode {
        let Example::Digits { args } = self.example;
        match outlast_digits::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                crate::term::talk(&format!("digits: {error:#}"));
                ExitCode::from(outlast_digits::exit_code(&error))
            }
        }
    }
}
