//! `outlast checkpoint show`.

use outlast_proto::control::v1::{Checkpoint, Shard, ShardHolder};

use super::list::{notes, now, wanted};
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, age, print_one, size, time};

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Id or name of the job
    job: String,
    /// ck7
    checkpoint: String,
}

impl Show {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let checkpoint = session.client.get_checkpoint(&self.job, &self.checkpoint).await?;
        print_one(session.format, &checkpoint, || page(&checkpoint, Paint::stdout()))?;
        Ok(Exit::Done)
    }
}

fn page(checkpoint: &Checkpoint, paint: Paint) -> String {
    let mut head = Columns::without_header();
    let when = |at| match time(at) {
        none if none.is_empty() => none,
        text => format!("{text} ({} ago)", age(at)),
    };
    head.pair("id", &checkpoint.id);
    head.pair("step", checkpoint.step);
    head.pair("state", paint.state(&checkpoint.state));
    head.pair("reason", &checkpoint.reason);
    head.pair("attempt", &checkpoint.attempt);
    head.pair("size", size(checkpoint.size_bytes));
    head.pair("wanted", wanted(checkpoint));
    head.pair("reached", &checkpoint.durability);
    head.pair("now", now(checkpoint, paint));
    head.pair("notes", notes(checkpoint));
    head.pair("root", &checkpoint.manifest_root);
    head.pair("opened", when(checkpoint.opened_at));
    head.pair("sealed", when(checkpoint.sealed_at));
    head.pair("stored", when(checkpoint.stored_at));
    let mut shards = Columns::new(&["RANK", "SIZE", "HOLDERS", "DOING", "ROOT"]);
    for shard in &checkpoint.shards {
        let holders: Vec<_> = shard.holders.iter().map(|one| holder(one, paint)).collect();
        let holders = if holders.is_empty() { paint.red("nobody") } else { holders.join(", ") };
        let size = size(shard.size_bytes);
        shards.row(&[shard.rank.to_string(), size, holders, doing(shard), shard.root.clone()]);
    }
    format!("{}\n{}", head.finish(), shards.finish())
}

fn holder(holder: &ShardHolder, paint: Paint) -> String {
    if holder.live { holder.node.clone() } else { paint.yellow(&format!("{} (gone)", holder.node)) }
}

/// The orders under way: `copy to n3`.
fn doing(shard: &Shard) -> String {
    let told = shard.orders.iter().map(|order| match order.task.as_str() {
        "copy" => format!("copy to {}", order.node),
        "store" => format!("store from {}", order.node),
        task => format!("{task} at {}", order.node),
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { "-".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use outlast_proto::control::v1::ShardOrder;

    use super::*;

    #[test]
    fn each_rank_has_its_holders_and_what_is_being_done() {
        let one = |node: &str, live| ShardHolder { node: node.to_owned(), live, ..ShardHolder::default() };
        let order = ShardOrder { task: "copy".to_owned(), node: "n3".to_owned() };
        let shard = Shard {
            holders: vec![one("n1", true), one("n2", false)],
            orders: vec![order],
            ..Shard::default()
        };
        let nobody = Shard { rank: 1, ..Shard::default() };
        let state = "sealed".to_owned();
        let checkpoint = Checkpoint { state, shards: vec![shard, nobody], ..Checkpoint::default() };
        let page = page(&checkpoint, Paint::none());
        let line = |start: &str| page.lines().find(|line| line.starts_with(start)).expect(start).to_owned();
        assert!(line("0 ").contains("n1, n2 (gone)") && line("0 ").contains("copy to n3"), "{page}");
        assert!(line("1 ").contains("nobody"), "{page}");
        assert!(line("now:").contains("unreadable"), "{page}");
    }
}
