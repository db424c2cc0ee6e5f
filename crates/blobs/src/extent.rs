//! A shard's bytes as extents, each a whole BLAKE3 subtree: one pass gives every extent's hash and the shard's root.
//!
//! Extents are aligned powers of two (of 1 KiB chunks), so the root that is merged from their hashes is exactly the plain
//! BLAKE3 of the shard. A shard of one extent has its root as that extent's hash; an empty one has no extents.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use outlast_types::Digest;

/// 16 MiB: large enough that seeks and hashes cost nothing, small enough to be repaired and re-sent one at a time.
pub const EXTENT_BYTES: u64 = 16 << 20;
/// BLAKE3's own chunk; nothing smaller is a subtree.
const EXTENT_BYTES_MIN: u64 = 1 << 10;

/// Whether extents of this size are subtrees.
pub(crate) fn is_extent_size(bytes: u64) -> bool {
    bytes >= EXTENT_BYTES_MIN && bytes.is_power_of_two()
}

/// How many extents a shard has.
pub(crate) fn extent_count(size_bytes: u64, extent_bytes: u64) -> u64 {
    size_bytes.div_ceil(extent_bytes)
}

pub(crate) struct ExtentHasher {
    extent_bytes: u64,
    /// Of the extent that is being filled. Kept when full until more bytes come: the only extent of a shard is hashed as a
    /// root, and only the end tells.
    hasher: Hasher,
    filled: u64,
    done: Vec<[u8; 32]>,
}

impl ExtentHasher {
    /// `extent_bytes` is a power of two of at least 1 KiB.
    pub(crate) fn new(extent_bytes: u64) -> Self {
        assert!(is_extent_size(extent_bytes), "extents must be whole subtrees");
        Self { extent_bytes, hasher: Hasher::new(), filled: 0, done: Vec::new() }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == self.extent_bytes {
                self.done.push(self.hasher.finalize_non_root());
                // A new one: `reset` keeps the old input offset, and the next count would underflow.
                self.hasher = Hasher::new();
                self.hasher.set_input_offset(self.done.len() as u64 * self.extent_bytes);
                self.filled = 0;
            }
            let room = usize::try_from(self.extent_bytes - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    pub(crate) fn finish(mut self) -> (Digest, Vec<[u8; 32]>) {
        if self.done.is_empty() {
            let root = *self.hasher.finalize().as_bytes();
            return (Digest(root), if self.filled == 0 { Vec::new() } else { vec![root] });
        }
        self.done.push(self.hasher.finalize_non_root());
        (merge_root(&self.done).expect("two extents or more"), self.done)
    }
}

/// The root that these extent hashes make.
pub(crate) fn merge_root(extents: &[[u8; 32]]) -> Option<Digest> {
    match extents {
        [] => Some(Digest(*blake3::hash(b"").as_bytes())),
        [only] => Some(Digest(*only)),
        _ => {
            let (left, right) = extents.split_at(left_len(extents.len()));
            let root = merge_subtrees_root(&merge(left)?, &merge(right)?, Mode::Hash);
            Some(Digest(*root.as_bytes()))
        }
    }
}

fn merge(extents: &[[u8; 32]]) -> Option<[u8; 32]> {
    match extents {
        [] => None,
        [only] => Some(*only),
        _ => {
            let (left, right) = extents.split_at(left_len(extents.len()));
            Some(merge_subtrees_non_root(&merge(left)?, &merge(right)?, Mode::Hash))
        }
    }
}

/// The left subtree of BLAKE3 is the largest power of two that leaves something for the right.
fn left_len(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// What some bytes of a shard hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subtree {
    /// As a part of something larger.
    pub(crate) part: [u8; 32],
    /// As all there is; of bytes at the beginning only.
    pub(crate) whole: Option<Digest>,
}

/// The bytes lie at `offset` in their shard, are aligned there, and are a power of two of 1 KiB chunks or the shard's last.
pub(crate) fn subtree(offset: u64, bytes: &[u8]) -> Subtree {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    let whole = (offset == 0).then(|| Digest(*hasher.finalize().as_bytes()));
    Subtree { part: hasher.finalize_non_root(), whole }
}

/// The hashes of a shard's pieces, put together in their order to those of its extents and its root. An extent is one piece
/// or more, so a piece is a whole subtree of it.
pub(crate) struct PieceTree {
    pieces_an_extent: u64,
    /// Of the extent that is being filled. Kept when full until more come: only the end tells what the root is.
    pieces: Vec<[u8; 32]>,
    extents: Vec<[u8; 32]>,
    first: Option<Digest>,
}

impl PieceTree {
    pub(crate) fn new(piece_bytes: u64, extent_bytes: u64) -> Self {
        assert!(
            is_extent_size(piece_bytes) && is_extent_size(extent_bytes) && piece_bytes <= extent_bytes,
            "pieces and extents must be whole subtrees"
        );
        let pieces_an_extent = extent_bytes / piece_bytes;
        Self { pieces_an_extent, pieces: Vec::new(), extents: Vec::new(), first: None }
    }

    pub(crate) fn push(&mut self, piece: Subtree) {
        if self.pieces.len() as u64 == self.pieces_an_extent {
            self.close_extent();
        }
        self.first = self.first.or(piece.whole);
        self.pieces.push(piece.part);
    }

    pub(crate) fn finish(mut self) -> (Digest, Vec<[u8; 32]>) {
        if self.extents.is_empty() {
            let root = match (self.pieces.as_slice(), self.first) {
                ([_], Some(whole)) => whole,
                (pieces, _) => merge_root(pieces).expect("none, or two pieces and more"),
            };
            return (root, if self.pieces.is_empty() { Vec::new() } else { vec![root.0] });
        }
        self.close_extent();
        (merge_root(&self.extents).expect("two extents or more"), self.extents)
    }

    fn close_extent(&mut self) {
        self.extents.push(merge(&self.pieces).expect("an extent has a piece"));
        self.pieces.clear();
    }
}

/// The hash that extent `index` of `count` must have.
pub(crate) fn extent_hash(index: u64, count: u64, extent_bytes: u64, bytes: &[u8]) -> [u8; 32] {
    hash_of(subtree(index * extent_bytes, bytes), count)
}

/// The hash of an extent of `count`, from what its bytes hash to.
pub(crate) fn hash_of(extent: Subtree, count: u64) -> [u8; 32] {
    match extent.whole {
        Some(whole) if count == 1 => whole.0,
        _ => extent.part,
    }
}

/// The hash of an extent of `count`, from those of its pieces, one at least.
pub(crate) fn hash_of_pieces(pieces: &[Subtree], count: u64) -> [u8; 32] {
    if let [only] = pieces {
        return hash_of(*only, count);
    }
    let parts: Vec<_> = pieces.iter().map(|piece| piece.part).collect();
    match count {
        1 => merge_root(&parts).expect("two pieces or more").0,
        _ => merge(&parts).expect("two pieces or more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_plain_blake3_whatever_the_size_and_the_pieces() {
        const EXTENT: u64 = 2048;
        let bytes: Vec<u8> = (0..40_000u32).map(|n| (n * 31 % 251) as u8).collect();
        let mut sizes: Vec<usize> = vec![0, 1, 1023, 1024, 1025];
        sizes.extend((1..=19).flat_map(|n| [n * 2048 - 1, n * 2048, n * 2048 + 1]));
        for size in sizes {
            let bytes = &bytes[..size];
            for piece in [1usize, 7, 2048, 5000, 40_000] {
                let mut hasher = ExtentHasher::new(EXTENT);
                bytes.chunks(piece).for_each(|piece| hasher.update(piece));
                let (root, extents) = hasher.finish();
                assert_eq!(root.0, *blake3::hash(bytes).as_bytes(), "{size} bytes in pieces of {piece}");
                assert_eq!(merge_root(&extents), Some(root));
                let mut tree = PieceTree::new(1024, EXTENT);
                for (index, piece) in bytes.chunks(1024).enumerate() {
                    tree.push(subtree(index as u64 * 1024, piece));
                }
                assert_eq!(tree.finish(), (root, extents.clone()), "{size} bytes");
                let count = extent_count(size as u64, EXTENT);
                assert_eq!(extents.len() as u64, count);
                for (index, extent) in bytes.chunks(EXTENT as usize).enumerate() {
                    assert_eq!(extent_hash(index as u64, count, EXTENT, extent), extents[index]);
                    let offset = |piece: usize| index as u64 * EXTENT + piece as u64 * 1024;
                    let pieces = extent.chunks(1024).enumerate();
                    let pieces: Vec<_> = pieces.map(|(at, piece)| subtree(offset(at), piece)).collect();
                    assert_eq!(hash_of_pieces(&pieces, count), extents[index]);
                }
            }
        }
    }
}
