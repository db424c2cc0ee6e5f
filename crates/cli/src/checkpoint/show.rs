//! `outlast checkpoint show`.

use outlast_proto::control::v1::{Checkpoint, ShardHolder};

use super::list::notes;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, print_one, size, time};

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
        print_one(session.format, &checkpoint, || page(&checkpoint))?;
        Ok(Exit::Done)
    }
}

fn page(checkpoint: &Checkpoint) -> String {
    let mut head = Columns::without_header();
    head.pair("id", &checkpoint.id);
    head.pair("step", checkpoint.step);
    head.pair("state", Paint::stdout().state(&checkpoint.state));
    head.pair("reason", &checkpoint.reason);
    head.pair("attempt", &checkpoint.attempt);
    head.pair("size", size(checkpoint.size_bytes));
    head.pair("durability", &checkpoint.durability);
    head.pair("notes", notes(checkpoint));
    head.pair("root", &checkpoint.manifest_root);
    head.pair("opened", time(checkpoint.opened_at));
    head.pair("sealed", time(checkpoint.sealed_at));
    let mut shards = Columns::new(&["RANK", "SIZE", "HOLDERS", "ROOT"]);
    for shard in &checkpoint.shards {
        let holders: Vec<_> = shard.holders.iter().map(holder).collect();
        shards.row(&[shard.rank.to_string(), size(shard.size_bytes), holders.join(", "), shard.root.clone()]);
    }
    format!("{}\n{}", head.finish(), shards.finish())
}

fn holder(holder: &ShardHolder) -> String {
    if holder.live { holder.node.clone() } else { format!("{} (gone)", holder.node) }
}
