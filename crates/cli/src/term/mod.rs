//! The terminal: data goes to stdout, talk to stderr, colours only where a person looks.

mod ask;
mod format;
mod paint;
mod table;
mod words;

use std::io::{self, Write as _};

use crate::problem::{Exit, Problem};

pub(crate) use ask::confirm;
pub(crate) use format::{Format, print_item, print_one};
pub(crate) use paint::Paint;
pub(crate) use table::Columns;
pub(crate) use words::{age, duration, size, time};

/// Writes data to stdout.
pub(crate) fn write_data(bytes: &[u8]) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Problem::nobody_reads(),
        _ => Problem::new(Exit::Failed, "standard output cannot be written").because_of(&error),
    })
}

/// A line of data.
pub(crate) fn say(line: &str) -> Result<(), Problem> {
    write_data(format!("{line}\n").as_bytes())
}

/// A line for people. Nobody listening is no reason to stop.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
