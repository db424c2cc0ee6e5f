//! The outboard file `<rank>-<root>.ext`: the extent hashes of one shard, kept apart from its bytes.
//!
//! ```text
//!  "OLEXT" 0 0 version(u8)  extent_bytes u64  size_bytes u64  root 32  count u32  count * 32  crc32c u32    (little endian)
//! ```
//! Trusted only if the CRC holds and the hashes merge to the root. A new version gets a new number; an old reader then
//! takes the file for damaged and rebuilds it from the bytes, which loses nothing.

use outlast_types::Digest;

use crate::extent::{extent_count, is_extent_size, merge_root};

const MAGIC: [u8; 7] = *b"OLEXT\0\0";
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 8 + 8 + 8 + 32 + 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outboard {
    pub(crate) extent_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) root: Digest,
    pub(crate) extents: Vec<[u8; 32]>,
}

impl Outboard {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.extents.len() * 32 + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.extent_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.root.0);
        let count = u32::try_from(self.extents.len()).expect("four billion extents are 64 PiB");
        bytes.extend_from_slice(&count.to_le_bytes());
        self.extents.iter().for_each(|extent| bytes.extend_from_slice(extent));
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// `None` for anything that is not exactly what `encode` writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) || body.len() < FIXED_BYTES {
            return None;
        }
        let u64_at = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let root = Digest(*body.get(24..)?.first_chunk()?);
        let count = u32::from_le_bytes(*body.get(56..)?.first_chunk()?) as usize;
        let (extents, rest) = body[FIXED_BYTES..].as_chunks::<32>();
        let outboard =
            Self { extent_bytes: u64_at(8)?, size_bytes: u64_at(16)?, root, extents: extents.to_vec() };
        let is_sound = body[..7] == MAGIC
            && body[7] == VERSION
            && rest.is_empty()
            && count == extents.len()
            && is_extent_size(outboard.extent_bytes)
            && extent_count(outboard.size_bytes, outboard.extent_bytes) == count as u64
            && merge_root(&outboard.extents) == Some(root);
        is_sound.then_some(outboard)
    }
}
