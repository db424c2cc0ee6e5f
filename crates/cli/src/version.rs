//! `outlast version`.

use std::process::ExitCode;

use serde_json::json;

use crate::problem::{Exit, Problem};
use crate::term::{Format, print_one};

#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// The form of the data on stdout
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: Format,
}

impl VersionArgs {
    pub(crate) fn run(self) -> Result<ExitCode, Problem> {
        let version = env!("CARGO_PKG_VERSION");
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let value = json!({"version": version, "os": os, "arch": arch});
        print_one(self.output, &value, || format!("outlast {version} ({os} {arch})\n"))?;
        Ok(Exit::Done.into())
    }
}
