//! The root of a checkpoint's manifest, as it goes into the seal.

use outlast_blobs::manifest::{Manifest, ManifestShard};
use outlast_control::plan::PlannedSeal;
use outlast_control::state::{Command, SealedShard};

/// The command that makes the checkpoint exist.
pub(super) fn command(seal: PlannedSeal) -> Command {
    let PlannedSeal { job, seq, attempt, step, world_size, shards, durability, degraded } = seal;
    let of_manifest = |shard: &SealedShard| ManifestShard {
        rank: shard.rank,
        root: shard.root,
        size_bytes: shard.size_bytes,
    };
    let manifest =
        Manifest { job, attempt, seq, step, world_size, shards: shards.iter().map(of_manifest).collect() };
    Command::SealCheckpoint {
        job,
        seq,
        attempt,
        manifest_root: manifest.root(),
        shards,
        durability,
        degraded,
    }
}
