//! Log lines on stdout: whole lines, each with its rank where there are several.

use std::collections::BTreeMap;

use outlast_proto::control::v1::{Job, LogLine};

use crate::problem::Problem;
use crate::term::{Format, Paint, print_item, time, write_data};

/// A line that never ends (a progress bar) is broken here.
const LINE_SIZE_MAX: usize = 1 << 20;

/// (attempt, rank, stream)
type Source = (String, u32, String);

pub(crate) struct LinePrinter {
    format: Format,
    timestamps: bool,
    /// Whose lines are told apart: several groups, several ranks.
    many_groups: bool,
    many_ranks: bool,
    paint: Paint,
    /// Lines of which the end has not come yet.
    unfinished: BTreeMap<Source, Vec<u8>>,
}

impl LinePrinter {
    pub(crate) fn new(job: &Job, format: Format, timestamps: bool) -> Self {
        let ranks = job
            .groups
            .iter()
            .flat_map(|group| &group.attempts)
            .map(|attempt| attempt.assignments.len())
            .max();
        // Before the first attempt the specification has to say it.
        let spec: serde_json::Value = serde_json::from_str(&job.spec).unwrap_or_default();
        let wanted = spec.pointer("/workers/max").and_then(serde_json::Value::as_u64).unwrap_or(1);
        let many_groups = job.groups.len() > 1;
        let many_ranks = ranks.is_some_and(|ranks| ranks > 1) || (!many_groups && wanted > 1);
        Self {
            format,
            timestamps,
            many_groups,
            many_ranks,
            paint: Paint::stdout(),
            unfinished: BTreeMap::new(),
        }
    }

    pub(crate) fn print(&mut self, line: LogLine) -> Result<(), Problem> {
        if self.format != Format::Table {
            return print_item(self.format, &line, String::new);
        }
        let source = (line.attempt.clone(), line.rank, line.stream.clone());
        let text = self.unfinished.entry(source.clone()).or_default();
        text.extend_from_slice(&line.text);
        if line.partial && text.len() < LINE_SIZE_MAX {
            return Ok(());
        }
        let text = self.unfinished.remove(&source).unwrap_or_default();
        write_data(&self.whole(&line, &text))
    }

    /// What is left of lines that never ended.
    pub(crate) fn finish(&mut self) -> Result<(), Problem> {
        for ((attempt, rank, stream), text) in std::mem::take(&mut self.unfinished) {
            let line = LogLine { attempt, rank, stream, ..LogLine::default() };
            write_data(&self.whole(&line, &text))?;
        }
        Ok(())
    }

    fn whole(&self, line: &LogLine, text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len() + 32);
        if self.timestamps {
            bytes.extend(self.paint.dim(&time(line.at)).into_bytes());
            bytes.push(b' ');
        }
        if let Some(who) = self.who(line) {
            bytes.extend(self.paint.hue(line.rank, &who).into_bytes());
            bytes.push(b' ');
        }
        if line.stream == "gap" {
            let text = String::from_utf8_lossy(text);
            bytes.extend(self.paint.dim(&format!("-- {} --", text.trim_end())).into_bytes());
        } else {
            bytes.extend_from_slice(text.strip_suffix(b"\n").unwrap_or(text));
        }
        bytes.push(b'\n');
        bytes
    }

    fn who(&self, line: &LogLine) -> Option<String> {
        // j12/3@1.2: the group is what tells the replicas of a service apart, all of which are rank 0.
        let group =
            line.attempt.split('@').next().and_then(|group| group.rsplit('/').next()).unwrap_or_default();
        match (self.many_groups, self.many_ranks) {
            (true, true) => Some(format!("[{group}.{}]", line.rank)),
            (true, false) => Some(format!("[{group}]")),
            (false, true) => Some(format!("[{}]", line.rank)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: &str) -> LogLine {
        LogLine { attempt: "j1/3@1.2".into(), rank: 1, stream: stream.into(), ..LogLine::default() }
    }

    fn printer(many_groups: bool, many_ranks: bool) -> LinePrinter {
        let (format, paint) = (Format::Table, Paint::none());
        LinePrinter { format, timestamps: false, many_groups, many_ranks, paint, unfinished: BTreeMap::new() }
    }

    #[test]
    fn lines_say_whose_they_are_where_that_is_a_question() {
        let text = |groups, ranks| printer(groups, ranks).whole(&line("stdout"), b"step 1\n");
        assert_eq!(text(false, false), b"step 1\n");
        assert_eq!(text(false, true), b"[1] step 1\n");
        assert_eq!(text(true, false), b"[3] step 1\n");
        assert_eq!(printer(false, false).whole(&line("gap"), b"3 lines lost"), b"-- 3 lines lost --\n");
        assert_eq!(
            printer(false, false).whole(&line("stderr"), b"\xff\xfe"),
            b"\xff\xfe\n",
            "bytes stay bytes"
        );
    }
}
