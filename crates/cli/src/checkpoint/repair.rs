//! Waiting until the cluster has replaced damaged copies. Nothing is ordered here: the agents report what they found bad,
//! and the leader's planner has it copied anew.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use outlast_proto::control::v1::{Checkpoint, Shard, VerifyCheckpointResponse, VerifyResult};

use super::list::rank as level;
use super::verify::is_damage;
use crate::connection::Session;
use crate::problem::Problem;
use crate::term::talk;

pub(super) const REPAIRED: &str = "repaired";
pub(super) const UNREPAIRED: &str = "unrepaired";

/// Between two looks at the log.
const PAUSE: Duration = Duration::from_millis(500);

/// How long, and for which job.
pub(super) struct Wait<'a> {
    pub(super) job: &'a str,
    pub(super) within: Duration,
}

impl Wait<'_> {
    /// Marks every damaged copy of `answer`, and adds the copies that took their places.
    pub(super) async fn until_repaired(
        &self,
        session: &Session,
        answer: &mut VerifyCheckpointResponse,
        damaged: &[u32],
    ) -> Result<(), Problem> {
        let checkpoint = answer.checkpoint.clone();
        // Ranks without any good copy cannot be repaired by anybody.
        let has_good = |rank: &u32| answer.results.iter().any(|one| one.rank == *rank && one.outcome == "ok");
        let mut open: BTreeSet<u32> = damaged.iter().copied().filter(has_good).collect();
        if !open.is_empty() {
            let limit = self.within.as_secs();
            talk(&format!(
                "damage in {} ranks of {checkpoint}: waiting up to {limit} s for good copies",
                open.len()
            ));
        }
        let mut fresh = Vec::new();
        let started = Instant::now();
        while !open.is_empty() && started.elapsed() < self.within {
            tokio::time::sleep(PAUSE).await;
            let seen = session.client.get_checkpoint(self.job, &checkpoint).await?;
            if seen.state != "sealed" {
                talk(&format!("{checkpoint} is {} meanwhile", seen.state));
                break;
            }
            for rank in settled(&seen, &open) {
                // The log counts enough copies; whether they are good only their bytes say.
                let again = session.client.verify_checkpoint(self.job, &checkpoint, true, &[rank]).await?;
                if again.intact {
                    talk(&format!("rank {rank} of {checkpoint} is whole again"));
                    open.remove(&rank);
                    fresh.extend(again.results);
                }
            }
        }
        mark(answer, fresh, &open);
        Ok(())
    }
}

/// The ranks that the log believes to be where they should be again: two live holders where copies are wanted, and nobody
/// was told to make one.
fn settled(seen: &Checkpoint, open: &BTreeSet<u32>) -> Vec<u32> {
    let wanted = if level(&seen.durability_wanted) >= level("replicated") { 2 } else { 1 };
    let is_settled = |shard: &&Shard| {
        let live = shard.holders.iter().filter(|holder| holder.live).count();
        live >= wanted && !shard.orders.iter().any(|order| order.task == "copy")
    };
    let ranks = seen.shards.iter().filter(is_settled).map(|shard| shard.rank);
    ranks.filter(|rank| open.contains(rank)).collect()
}

/// What became of each damaged copy, and the new ones where other nodes took over.
fn mark(answer: &mut VerifyCheckpointResponse, fresh: Vec<VerifyResult>, open: &BTreeSet<u32>) {
    let healed: BTreeSet<u32> =
        fresh.iter().map(|one| one.rank).filter(|rank| !open.contains(rank)).collect();
    for result in answer.results.iter_mut().filter(|result| is_damage(result)) {
        let word = if healed.contains(&result.rank) { REPAIRED } else { UNREPAIRED };
        result.repair = word.to_owned();
    }
    for mut copy in fresh {
        let known = |one: &VerifyResult| (one.rank, &one.node) == (copy.rank, &copy.node);
        if !answer.results.iter().any(known) {
            copy.detail = "took the place of a damaged copy".to_owned();
            answer.results.push(copy);
        }
    }
    answer.results.sort_by(|a, b| (a.rank, &a.node).cmp(&(b.rank, &b.node)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_repaired_only_when_its_rank_is_whole_again() {
        let one = |rank, node: &str, outcome: &str| VerifyResult {
            rank,
            node: node.to_owned(),
            outcome: outcome.to_owned(),
            ..VerifyResult::default()
        };
        let results =
            vec![one(0, "n1", "ok"), one(0, "n2", "corrupt"), one(1, "n1", "missing"), one(1, "n2", "ok")];
        let mut answer = VerifyCheckpointResponse { results, ..VerifyCheckpointResponse::default() };
        mark(&mut answer, vec![one(0, "n1", "ok"), one(0, "n3", "ok")], &BTreeSet::from([1]));
        let told: Vec<_> =
            answer.results.iter().map(|one| (one.rank, one.node.as_str(), one.repair.as_str())).collect();
        assert_eq!(
            told,
            [(0, "n1", ""), (0, "n2", REPAIRED), (0, "n3", ""), (1, "n1", UNREPAIRED), (1, "n2", "")]
        );
    }
}
