//! The name of an order about a shard, as in `agent/src/upkeep`. The simulated agents carry none out.

use outlast_blobs::ShardKey;
use outlast_control::state::ShardTask;
use outlast_types::Digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    pub(crate) task: ShardTask,
    pub(crate) shard: ShardKey,
    pub(crate) root: Digest,
}
