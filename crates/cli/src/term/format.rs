//! `-o table|json|yaml`: the JSON form is the proto's, with its field names.

use serde::Serialize;

use super::{say, write_data};
use crate::problem::{Exit, Problem};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// The fields of the control API in snake_case, times in RFC 3339, sizes in bytes
    Json,
    /// The same as YAML
    Yaml,
}

/// Prints one value; `table` makes the form for people.
pub(crate) fn print_one<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Problem> {
    match format {
        Format::Table => write_data(table().as_bytes()),
        Format::Json => {
            let text = serde_json::to_string_pretty(value).map_err(|error| unprintable(&error))?;
            say(&text)
        }
        Format::Yaml => {
            let text = serde_norway::to_string(value).map_err(|error| unprintable(&error))?;
            write_data(text.as_bytes())
        }
    }
}

/// Prints one of many values that come one after the other: JSON lines, or YAML documents.
pub(crate) fn print_item<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Problem> {
    match format {
        Format::Json => say(&serde_json::to_string(value).map_err(|error| unprintable(&error))?),
        Format::Yaml => {
            let text = serde_norway::to_string(value).map_err(|error| unprintable(&error))?;
            write_data(format!("---\n{text}").as_bytes())
        }
        Format::Table => print_one(format, value, table),
    }
}

fn unprintable(error: &dyn std::error::Error) -> Problem {
    Problem::new(Exit::Failed, "the answer cannot be printed in this form")
        .because_of(error)
        .next("use -o table")
}
