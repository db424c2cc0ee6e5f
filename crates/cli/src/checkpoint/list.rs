//! `outlast checkpoint list`.

use outlast_proto::control::v1::Checkpoint;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, age, print_one, size, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Id or name of the job
    job: String,
}

impl List {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let answer = session.client.list_checkpoints(&self.job).await?;
        print_one(session.format, &answer, || checkpoints_table(&answer.checkpoints))?;
        if answer.checkpoints.is_empty() {
            talk(&format!("{} has no checkpoints yet", answer.job_id));
        }
        Ok(Exit::Done)
    }
}

/// One line a checkpoint, in the order they came.
pub(crate) fn checkpoints_table(checkpoints: &[Checkpoint]) -> String {
    let paint = Paint::stdout();
    let header = ["ID", "STEP", "STATE", "SIZE", "WANTED", "NOW", "NOTES", "DOING", "AGE", "ATTEMPT"];
    let mut columns = Columns::new(&header);
    for checkpoint in checkpoints {
        columns.row(&[
            checkpoint.id.clone(),
            checkpoint.step.to_string(),
            paint.state(&checkpoint.state),
            size(checkpoint.size_bytes),
            wanted(checkpoint),
            now(checkpoint, paint),
            notes(checkpoint),
            doing(checkpoint),
            age(checkpoint.sealed_at.or(checkpoint.opened_at)),
            checkpoint.attempt.clone(),
        ]);
    }
    columns.finish()
}

/// Whether there are bytes that anybody counts on.
fn has_bytes(checkpoint: &Checkpoint) -> bool {
    ["sealed", "quarantined"].contains(&checkpoint.state.as_str())
}

/// What the job's policy asks for.
pub(super) fn wanted(checkpoint: &Checkpoint) -> String {
    if has_bytes(checkpoint) { checkpoint.durability_wanted.clone() } else { "-".to_owned() }
}

/// What the copies amount to that are there now: red where it cannot be read, yellow below what is wanted.
pub(super) fn now(checkpoint: &Checkpoint, paint: Paint) -> String {
    let now = checkpoint.durability_now.as_str();
    if !has_bytes(checkpoint) {
        return "-".to_owned();
    }
    match rank(now) {
        0 => paint.red("unreadable"),
        have if have < rank(&checkpoint.durability_wanted) => paint.yellow(now),
        _ => now.to_owned(),
    }
}

/// The order of the levels; 0 for none.
pub(super) fn rank(durability: &str) -> u8 {
    match durability {
        "local" => 1,
        "replicated" => 2,
        "stored" => 3,
        _ => 0,
    }
}

/// What sets it apart.
pub(super) fn notes(checkpoint: &Checkpoint) -> String {
    let notes = [
        (checkpoint.degraded, "degraded"),
        (checkpoint.proven, "proven"),
        (checkpoint.pinned, "pinned"),
        (checkpoint.stale, "stale"),
        (checkpoint.stored_at.is_some(), "stored"),
    ];
    let notes: Vec<_> = notes.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
    if notes.is_empty() { "-".to_owned() } else { notes.join(",") }
}

/// The orders under way, by kind: `copy 2, prove 1`.
fn doing(checkpoint: &Checkpoint) -> String {
    let orders = checkpoint.shards.iter().flat_map(|shard| &shard.orders);
    let count = |task: &str| orders.clone().filter(|order| order.task == task).count();
    let counts = ["copy", "prove", "store"].map(|task| (task, count(task)));
    let told = counts.iter().filter(|(_, count)| *count > 0).map(|(task, count)| format!("{task} {count}"));
    let told: Vec<String> = told.collect();
    if told.is_empty() { "-".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use outlast_proto::control::v1::{Shard, ShardOrder};

    use super::*;

    #[test]
    fn a_line_says_what_is_wanted_what_is_true_and_what_is_done_about_it() {
        let order = |task: &str| ShardOrder { task: task.to_owned(), node: "n3".to_owned() };
        let shard = Shard { orders: vec![order("copy"), order("prove")], ..Shard::default() };
        let thin = Checkpoint {
            id: "ck2".to_owned(),
            step: 40,
            attempt: "j1/0@1.1".to_owned(),
            state: "sealed".to_owned(),
            size_bytes: 3 << 20,
            durability_wanted: "replicated".to_owned(),
            durability_now: "local".to_owned(),
            degraded: true,
            stale: true,
            shards: vec![shard.clone(), shard],
            ..Checkpoint::default()
        };
        let gone = Checkpoint { durability_now: "none".to_owned(), shards: Vec::new(), ..thin.clone() };
        let open = Checkpoint { state: "open".to_owned(), degraded: false, stale: false, ..gone.clone() };
        let table = checkpoints_table(&[thin, gone, open]);
        let fields = |line: usize| -> Vec<&str> {
            let line = table.lines().nth(line).expect("a line");
            line.split("  ").map(str::trim).filter(|field| !field.is_empty()).collect()
        };
        let doing = "copy 2, prove 2";
        assert_eq!(
            fields(1),
            ["ck2", "40", "sealed", "3MiB", "replicated", "local", "degraded,stale", doing, "-", "j1/0@1.1"]
        );
        assert_eq!(fields(2)[4..8], ["replicated", "unreadable", "degraded,stale", "-"]);
        assert_eq!(fields(3)[4..8], ["-", "-", "-", "-"], "nobody counts on it yet");
    }
}
