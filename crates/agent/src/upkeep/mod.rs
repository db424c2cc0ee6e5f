//! Looking after the shards on this node's disk: what the log orders (copies, proofs, uploads), and a scrubber of its own.
//! The agent's loop decides and remembers; here the bytes are moved.
//!
//! ```text
//!  desired orders ──► Upkeep::reconcile ──► task: copy · prove ──► UpkeepEvent ──► loop: observe, or say done
//!                                scrubber ──► damaged shard ───────► UpkeepEvent ──► loop: set aside, observe
//! ```

mod orders;
mod scrub;
mod seal;
pub(crate) mod store;
mod work;

pub(crate) use orders::{Ended, Upkeep};
pub(crate) use scrub::run as scrub;

use outlast_blobs::{ReadError, ShardKey};
use outlast_control::state::ShardTask;
use outlast_types::Digest;

/// Which shard, and what is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    pub(crate) task: ShardTask,
    pub(crate) shard: ShardKey,
    pub(crate) root: Digest,
}

/// What the tasks of this module tell the loop.
#[derive(Debug)]
pub(crate) enum UpkeepEvent {
    Ended(OrderKey, Ended),
    /// The own copy is damaged or gone, whoever noticed.
    Damaged {
        shard: ShardKey,
        root: Digest,
        reason: String,
    },
    /// It was looked at again. With a reason: it was bad, and its bytes are out of the way.
    Looked {
        shard: ShardKey,
        root: Digest,
        set_aside: Option<String>,
    },
}

/// A sentence for the log, where the bytes themselves are the trouble and not this moment.
pub(crate) fn damage(error: &ReadError) -> Option<String> {
    match error {
        ReadError::Corrupt { .. } => Some(error.to_string()),
        ReadError::Missing => Some("its file is gone".to_owned()),
        ReadError::Transient { .. } => None,
    }
}
