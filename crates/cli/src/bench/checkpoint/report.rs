//! The measurements, and their ratios beside what is to be reached. Nothing is asserted: a machine may be busy.

use std::fmt::Write as _;

use outlast_types::ByteSize;
use serde_json::{Value, json};

use super::cluster::{MEMORY, SEAL_P99, SYNC_P99};
use super::disk::{BARE_WRITE, PLAIN_READ, PLAIN_WRITE, SHARD_READ, SHARD_WRITE};
use super::worker::WAYS;
use crate::bench::figures::{Figures, quantile};

/// What an agent may take beside its staging slots, whatever the size.
const AGENT_MIB_MAX: f64 = 256.0;
/// The slots are files of shared memory that the agent never maps: they are not in its count.
const SLOTS_MIB: f64 = 0.0;

pub(super) struct Report {
    size: ByteSize,
    disk: String,
    figures: Figures,
    rows: Vec<Row>,
}

/// One thing that has a target.
struct Row {
    what: String,
    /// Of each run; what was measured in turns is divided run by run.
    values: Vec<f64>,
    target: String,
    reached: bool,
}

impl Row {
    fn at_most(what: impl Into<String>, values: Vec<f64>, limit: f64) -> Self {
        let reached = quantile(&values, 0.5) <= limit;
        Self { what: what.into(), values, target: format!("at most {limit:.2}"), reached }
    }
    fn at_least(what: impl Into<String>, values: Vec<f64>, limit: f64) -> Self {
        let reached = quantile(&values, 0.5) >= limit;
        Self { what: what.into(), values, target: format!("at least {limit:.2}"), reached }
    }
}

/// Run by run, so that a bad minute of the disk is in both.
fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

fn rows(figures: &Figures) -> Vec<Row> {
    let of = |name: &str| figures.values(name);
    let stall = |way: &super::worker::Way| {
        let what = way.stall.strip_suffix(", s").unwrap_or(way.stall);
        Row::at_most(format!("{what} / memcpy"), ratios(of(way.stall), of(way.memcpy)), 1.3)
    };
    let hashing = ratios(of(SHARD_WRITE), of(BARE_WRITE)).into_iter().map(|ratio| ratio - 1.0).collect();
    let highest = |values: &[f64]| quantile(values, 1.0);
    let mut rows: Vec<Row> = WAYS.iter().map(stall).collect();
    rows.extend([
        Row::at_most("hashing, as a share of the write without it", hashing, 0.10),
        Row::at_least("write throughput / plain write's", ratios(of(PLAIN_WRITE), of(SHARD_WRITE)), 0.8),
        Row::at_least("restore throughput / plain read's", ratios(of(PLAIN_READ), of(SHARD_READ)), 0.8),
        Row::at_most("memory of an agent, MiB", vec![highest(of(MEMORY))], SLOTS_MIB + AGENT_MIB_MAX),
        Row::at_most("seal p99, ms", of(SEAL_P99).to_vec(), 3.0 * highest(of(SYNC_P99)) + 10.0),
    ]);
    rows
}

impl Report {
    pub(super) fn new(size: ByteSize, disk: String, figures: Figures) -> Self {
        let rows = rows(&figures);
        Self { size, disk, figures, rows }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("one rank of {} as 16 MiB tensors; disk: {}\n\n", self.size, self.disk);
        text += &self.figures.table();
        let _ = writeln!(
            text,
            "\n{:<58} {:>10} {:>10} {:>10}  target (median)",
            "compared", "min", "median", "max"
        );
        for row in &self.rows {
            let at = |q| quantile(&row.values, q);
            let word = if row.reached { "reached" } else { "MISSED" };
            let (what, target) = (&row.what, &row.target);
            let _ = writeln!(
                text,
                "{what:<58} {:>10.3} {:>10.3} {:>10.3}  {target}: {word}",
                at(0.0),
                at(0.5),
                at(1.0)
            );
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let row = |row: &Row| {
            let Row { what, values, target, reached } = row;
            json!({"what": what, "values": values, "target": target, "reached": reached})
        };
        json!({
            "size_bytes": self.size.0,
            "disk": self.disk,
            "measured": self.figures.json(),
            "compared": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_judged_by_the_median_of_its_runs() {
        let mut figures = Figures::default();
        for (name, values) in [
            (PLAIN_WRITE, [1.0, 1.0, 1.0]),
            (BARE_WRITE, [1.0, 1.0, 1.0]),
            // One bad run of three changes nothing.
            (SHARD_WRITE, [1.05, 9.0, 1.05]),
            (PLAIN_READ, [1.0, 1.0, 1.0]),
            (SHARD_READ, [2.0, 2.0, 1.0]),
            (WAYS[0].memcpy, [1.0, 1.0, 1.0]),
            (WAYS[1].memcpy, [1.0, 1.0, 1.0]),
            (WAYS[0].stall, [1.1, 1.1, 1.1]),
            (WAYS[1].stall, [2.0, 2.0, 2.0]),
            (MEMORY, [30.0, 300.0, 40.0]),
            (SEAL_P99, [19.0, 19.0, 19.0]),
            (SYNC_P99, [3.0, 3.0, 3.0]),
        ] {
            values.into_iter().for_each(|value| figures.add(name, value));
        }
        let report = Report::new(ByteSize(1 << 30), "ext4 on /dev/vda".to_owned(), figures);
        let reached: Vec<bool> = report.rows.iter().map(|row| row.reached).collect();
        assert_eq!(reached, [true, false, true, true, false, false, true], "{}", report.text());
        assert!(report.text().contains("1GiB") && report.text().contains("ext4 on /dev/vda"));
        assert_eq!(report.json()["measured"][PLAIN_WRITE][1], 1.0);
    }
}
