//! Log lines on standard error: for people by default, as JSON for machines. Standard output belongs to data.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The variable that overrides the filter, for example `info,outlast_coordinator=debug`.
pub const FILTER_VARIABLE: &str = "OUTLAST_LOG";
/// Libraries are quiet unless something is wrong: openraft at `info` writes a line for each heartbeat.
pub const DEFAULT_FILTER: &str = "info,openraft=warn,h2=warn,hyper=warn,tower=warn,sled=warn";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("{0:?} is not a log format: use human or json")]
    UnknownFormat(String),
    #[error("{text:?} is not a log filter: write for example info,outlast_coordinator=debug")]
    Filter {
        text: String,
        #[source]
        source: ParseError,
    },
    #[error("logging was set up before")]
    Twice,
}

impl FromStr for LogFormat {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            other => Err(LoggingError::UnknownFormat(other.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

/// Sets up the process's log lines. `filter`: what a flag said; else `OUTLAST_LOG`, else [`DEFAULT_FILTER`].
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), LoggingError> {
    let from_env = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let text = filter.map(str::to_owned).or(from_env).unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let filter = EnvFilter::try_new(&text).map_err(|source| LoggingError::Filter { text, source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let done = match format {
        LogFormat::Human => builder.with_ansi(colours).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    done.map_err(|_| LoggingError::Twice)
}
