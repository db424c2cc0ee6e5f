//! What the daemons share: the runtime, the log lines, the signals that end them, and the ready line.

use std::path::PathBuf;
use std::process::ExitCode;

use outlast_telemetry::LogFormat;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::layers::Layers;
use crate::problem::{Exit, Problem};
use crate::term::{say, write_data};

#[derive(Debug, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Settings from a TOML file; flags and OUTLAST_* variables beat it
    #[arg(long, env = "OUTLAST_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print what is in force and where each value came from, as a settings file, and leave
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Log lines on stderr for people (human) or machines (json); OUTLAST_LOG filters them
    #[arg(long, default_value = "human", value_name = "FORM")]
    log_format: LogFormat,
}

impl DaemonArgs {
    /// Adds the file and the variables; flags come after them.
    pub(crate) fn layers(&self, layers: Layers) -> Result<Layers, Problem> {
        layers.file(self.config.as_deref())?.environment(|name| std::env::var(name).ok())
    }

    pub(crate) fn print(&self, layers: &Layers) -> Result<ExitCode, Problem> {
        write_data(layers.print().as_bytes())?;
        Ok(Exit::Done.into())
    }

    pub(crate) fn start_logging(&self) -> Result<(), Problem> {
        start_logging(self.log_format)
    }
}

pub(crate) fn start_logging(format: LogFormat) -> Result<(), Problem> {
    outlast_telemetry::logging::init(format, None)
        .map_err(|error| Problem::new(Exit::Usage, "log lines cannot be set up").because_of(&error))
}

/// Runs a daemon on a runtime with several threads; `shutdown` fires at SIGINT and SIGTERM.
pub(crate) fn run<F>(daemon: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode, Problem>
where
    F: Future<Output = Result<Exit, Problem>>,
{
    let no_start = |error| Problem::new(Exit::Failed, "this process cannot start").because_of(&error);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(no_start)?;
    let exit = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        listen_for_signals(shutdown.clone()).map_err(no_start)?;
        daemon(shutdown).await
    });
    // Threads that block (a hung disk) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    exit.map(ExitCode::from)
}

/// The first signal asks for a clean end, the second one ends at once.
fn listen_for_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked {
                crate::term::talk("ended at once: asked twice");
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
            }
            asked = true;
            shutdown.cancel();
        }
    });
    Ok(())
}

/// The one line on stdout that says that work can begin.
pub(crate) fn ready(line: &str) -> Result<(), Problem> {
    say(&format!("ready: {line}"))
}
