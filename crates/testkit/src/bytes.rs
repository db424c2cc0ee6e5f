//! Contents of shards, without the bytes: a root names what a rank saved, and what it would be once it rotted.

use outlast_types::{AttemptId, CheckpointSeq, Digest};

fn mix(words: &[u64]) -> Digest {
    let mut bytes = [0; 32];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        for word in words {
            hash = (hash ^ word.wrapping_add(i as u64)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        chunk.copy_from_slice(&hash.to_be_bytes());
    }
    Digest(bytes)
}

/// What a rank of an attempt has at a step.
pub(crate) fn shard_root(attempt: AttemptId, rank: u32, step: u64) -> Digest {
    mix(&[
        attempt.group.job.0,
        attempt.group.index.into(),
        attempt.generation,
        attempt.number,
        rank.into(),
        step,
    ])
}

pub(crate) fn manifest_root(
    attempt: AttemptId,
    seq: CheckpointSeq,
    step: u64,
    roots: impl Iterator<Item = Digest>,
) -> Digest {
    let word = |root: Digest| u64::from_be_bytes(root.0[..8].try_into().expect("eight bytes"));
    let words: Vec<u64> =
        [attempt.group.job.0, attempt.number, seq.0, step].into_iter().chain(roots.map(word)).collect();
    mix(&words)
}
