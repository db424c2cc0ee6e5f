//! `outlast checkpoint verify`: every holder is asked for its copy, one rank after the other, so that there is progress to
//! show; damage is waited for until the cluster has put good copies in its place.

use std::time::Duration;

use futures::StreamExt as _;
use indicatif::ProgressBar;
use outlast_proto::control::v1::{Checkpoint, Shard, VerifyCheckpointResponse, VerifyResult};
use outlast_types::Span;

use super::bar::bar;
use super::newest::named_or_newest;
use super::repair;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, print_one, talk};

/// Ranks that are verified at a time: enough to keep several disks busy.
const RANKS_AT_A_TIME: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Id or name of the job
    job: String,
    /// Which one [default: the newest that is sealed]
    checkpoint: Option<String>,
    /// Read and hash every byte at every holder, past the page cache, instead of only looking for the files
    #[arg(long)]
    deep: bool,
    /// How long to wait until damaged copies are replaced
    #[arg(long, default_value = "2m", value_name = "TIME")]
    repair_within: Span,
}

impl Verify {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let checkpoint = named_or_newest(&session, &self.job, self.checkpoint.as_deref()).await?;
        let mut answer = ask_all(&session, &self.job, &checkpoint, self.deep).await?;
        let damaged = damaged_ranks(&answer.results);
        if !damaged.is_empty() {
            let wait = repair::Wait { job: &self.job, within: Duration::from(self.repair_within) };
            wait.until_repaired(&session, &mut answer, &damaged).await?;
        }
        print_one(session.format, &answer, || table(&answer))?;
        Ok(judge(&answer, self.deep))
    }
}

async fn ask_all(
    session: &Session,
    job: &str,
    checkpoint: &Checkpoint,
    deep: bool,
) -> Result<VerifyCheckpointResponse, Problem> {
    if checkpoint.shards.is_empty() {
        // The coordinator has the words for it.
        return Ok(session.client.verify_checkpoint(job, &checkpoint.id, deep, &[]).await?);
    }
    let copies_bytes = |shard: &Shard| shard.size_bytes * shard.holders.len() as u64;
    let bar = bar(&format!("verifying {}", checkpoint.id), checkpoint.shards.iter().map(copies_bytes).sum());
    let asked = checkpoint.shards.iter().map(|shard| {
        let bytes = copies_bytes(shard);
        ask_rank(session, job, &checkpoint.id, shard.rank, deep, (&bar, bytes))
    });
    let mut answers = futures::stream::iter(asked).buffer_unordered(RANKS_AT_A_TIME);
    let mut whole = VerifyCheckpointResponse {
        checkpoint: checkpoint.id.clone(),
        results: Vec::new(),
        restorable: true,
        intact: true,
    };
    while let Some(answer) = answers.next().await {
        let VerifyCheckpointResponse { checkpoint: _, results, restorable, intact } = answer?;
        whole.results.extend(results);
        whole.restorable &= restorable;
        whole.intact &= intact;
    }
    bar.finish_and_clear();
    whole.results.sort_by(|a, b| (a.rank, &a.node).cmp(&(b.rank, &b.node)));
    Ok(whole)
}

async fn ask_rank(
    session: &Session,
    job: &str,
    checkpoint: &str,
    rank: u32,
    deep: bool,
    (bar, bytes): (&ProgressBar, u64),
) -> Result<VerifyCheckpointResponse, Problem> {
    let answer = session.client.verify_checkpoint(job, checkpoint, deep, &[rank]).await?;
    bar.inc(bytes);
    Ok(answer)
}

/// Whether the bytes themselves are the trouble: one that is merely away is not damaged.
pub(super) fn is_damage(result: &VerifyResult) -> bool {
    ["corrupt", "missing"].contains(&result.outcome.as_str())
}

fn damaged_ranks(results: &[VerifyResult]) -> Vec<u32> {
    let mut ranks: Vec<u32> =
        results.iter().filter(|result| is_damage(result)).map(|result| result.rank).collect();
    ranks.dedup();
    ranks
}

/// The wire's word for a holder, as people read it.
fn word(outcome: &str) -> &str {
    match outcome {
        "ok" => "good",
        "corrupt" => "damaged",
        "unreachable" => "away",
        other => other,
    }
}

fn table(answer: &VerifyCheckpointResponse) -> String {
    let paint = Paint::stdout();
    let mut columns = Columns::new(&["CHECKPOINT", "RANK", "NODE", "COPY", "REPAIR", "DETAIL"]);
    for result in &answer.results {
        let repair = if result.repair.is_empty() { "-" } else { &result.repair };
        columns.row(&[
            answer.checkpoint.clone(),
            result.rank.to_string(),
            result.node.clone(),
            paint.state(word(&result.outcome)),
            paint.state(repair),
            result.detail.clone(),
        ]);
    }
    columns.finish()
}

/// Repaired damage is no failure, and neither is a copy that is away while another one is there.
fn judge(answer: &VerifyCheckpointResponse, deep: bool) -> Exit {
    let name = &answer.checkpoint;
    let count = |fits: &dyn Fn(&VerifyResult) -> bool| answer.results.iter().filter(|one| fits(one)).count();
    let unrepaired = count(&|one| is_damage(one) && one.repair != repair::REPAIRED);
    let repaired = count(&|one| one.repair == repair::REPAIRED);
    let away = count(&|one| one.outcome == "unreachable");
    if repaired > 0 {
        talk(&format!("{repaired} damaged copies of {name} were replaced by good ones"));
    }
    if away > 0 {
        talk(&format!("{away} copies of {name} are away, nothing is known of their bytes"));
    }
    if !answer.restorable {
        talk(&format!("{name} cannot be restored now: some rank has no good copy in reach"));
        return Exit::Failed;
    }
    if unrepaired > 0 {
        talk(&format!("{name} can be restored, but {unrepaired} damaged copies were not replaced in time"));
        return Exit::Failed;
    }
    if !deep {
        talk("only the files were looked for; --deep reads every byte");
    }
    Exit::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(rank: u32, node: &str, outcome: &str, repair: &str) -> VerifyResult {
        VerifyResult {
            rank,
            node: node.to_owned(),
            outcome: outcome.to_owned(),
            repair: repair.to_owned(),
            ..VerifyResult::default()
        }
    }

    fn answer(restorable: bool, results: Vec<VerifyResult>) -> VerifyCheckpointResponse {
        VerifyCheckpointResponse { checkpoint: "ck1".to_owned(), results, restorable, intact: false }
    }

    #[test]
    fn only_damage_that_stays_is_a_failure() {
        let good = || result(0, "n1", "ok", "");
        for (results, exit) in [
            (vec![good()], Exit::Done),
            (vec![good(), result(0, "n2", "unreachable", "")], Exit::Done),
            (vec![good(), result(0, "n2", "corrupt", "repaired")], Exit::Done),
            (vec![good(), result(0, "n2", "corrupt", "unrepaired")], Exit::Failed),
            (vec![good(), result(0, "n2", "missing", "")], Exit::Failed),
        ] {
            assert_eq!(judge(&answer(true, results.clone()), true), exit, "{results:?}");
            assert_eq!(judge(&answer(false, results), true), Exit::Failed, "some rank cannot be read");
        }
    }

    #[test]
    fn the_table_says_what_became_of_each_copy() {
        let results = vec![result(0, "n1", "ok", ""), result(0, "n2", "corrupt", "repaired")];
        let table = table(&answer(true, results));
        let fields = |line: usize| table.lines().nth(line).expect("a line").split_whitespace().collect();
        let (first, second): (Vec<&str>, Vec<&str>) = (fields(1), fields(2));
        assert_eq!(first, ["ck1", "0", "n1", "good", "-"]);
        assert_eq!(second, ["ck1", "0", "n2", "damaged", "repaired"]);
    }
}
