//! The options that every command has which talks to a cluster, and the session made of them.

use std::process::ExitCode;

use outlast_client::{Client, DEFAULT_COORDINATOR};
use outlast_types::Span;

use crate::problem::{Exit, Problem};
use crate::term::Format;

#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Coordinators to ask; one is enough, the others are learned from it [default: 127.0.0.1:7400]
    #[arg(
        long,
        global = true,
        env = "OUTLAST_COORDINATOR",
        hide_env_values = true,
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        help_heading = "Connection and output"
    )]
    coordinator: Vec<String>,
    /// How long to go on trying
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_name = "TIME",
        help_heading = "Connection and output"
    )]
    timeout: Span,
    /// The form of the data on stdout
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORM",
        help_heading = "Connection and output"
    )]
    output: Format,
}

/// What a command works with.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) format: Format,
}

impl Connection {
    pub(crate) fn format(&self) -> Format {
        self.output
    }

    fn open(&self) -> Result<Session, Problem> {
        let mut endpoints: Vec<_> =
            self.coordinator.iter().filter(|one| !one.trim().is_empty()).cloned().collect();
        if endpoints.is_empty() {
            endpoints.push(DEFAULT_COORDINATOR.to_owned());
        }
        let client = Client::new(endpoints)?.with_timeout(self.timeout.into()).with_actor(&actor());
        Ok(Session { client, format: self.output })
    }

    /// Opens a session and runs one command on a single thread: an operator's command waits, it does not compute.
    pub(crate) fn run<F>(&self, command: impl FnOnce(Session) -> F) -> Result<ExitCode, Problem>
    where
        F: Future<Output = Result<Exit, Problem>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Problem::new(Exit::Failed, "this process cannot start").because_of(&error))?;
        let session = self.open()?;
        let exit = runtime.block_on(command(session))?;
        Ok(exit.into())
    }
}

/// Who asks, for the audit trail; there is no authentication yet, so this is what the user says of themselves.
fn actor() -> String {
    let named =
        ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    named.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()))
}
