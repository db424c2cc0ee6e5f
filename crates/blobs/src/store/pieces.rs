//! Reading one shard for somebody who verifies it himself, as another node does. Bytes are handed out as they are read and
//! hashed, so little memory is needed; what is damaged is told at the end of its extent at the latest, instead of the last
//! of its pieces.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;

use super::reader::{ReadError, ShardReader};
use crate::extent::{Subtree, extent_count, hash_of_pieces};
use crate::hash_pool::Pending;

/// What is read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that are read while one before them is hashed.
const AHEAD_MAX: usize = 2;

/// A shard's bytes in their order. An error is the last item.
pub struct ShardPieces {
    of: ShardReader,
    piece_bytes: u64,
    /// Up to where was read, and handed out.
    read: u64,
    given: u64,
    ahead: VecDeque<Pending>,
    /// Of the extent that is being handed out.
    pieces: Vec<Subtree>,
    has_failed: bool,
}

impl ShardPieces {
    pub(super) fn new(of: ShardReader) -> Self {
        let piece_bytes = PIECE_BYTES.min(of.extent_bytes());
        let (ahead, pieces) = (VecDeque::new(), Vec::new());
        Self { of, piece_bytes, read: 0, given: 0, ahead, pieces, has_failed: false }
    }

    fn read_ahead(&mut self) -> Result<(), ReadError> {
        let size_bytes = self.of.size_bytes();
        while self.ahead.len() <= AHEAD_MAX && self.read < size_bytes {
            // A piece is small: its length is one of memory.
            let mut piece = vec![0; self.piece_bytes.min(size_bytes - self.read) as usize];
            let extent = self.read / self.of.extent_bytes();
            let read = self.of.file.read_exact_at(&mut piece, self.read);
            read.map_err(|err| ReadError::from_io(err, extent))?;
            let (at, len) = (self.read, piece.len() as u64);
            self.ahead.push_back(self.of.pool.hash(piece, at));
            self.read += len;
        }
        Ok(())
    }

    fn next_piece(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        self.read_ahead()?;
        let Some(oldest) = self.ahead.pop_front() else { return Ok(None) };
        let hashed =
            oldest.wait().map_err(|err| ReadError::Transient { source: std::io::Error::other(err) })?;
        self.pieces.push(hashed.subtree);
        self.given += hashed.bytes.len() as u64;
        let (size_bytes, extent_bytes) = (self.of.size_bytes(), self.of.extent_bytes());
        if self.given == size_bytes || self.given.is_multiple_of(extent_bytes) {
            let extent = (self.given - 1) / extent_bytes;
            let is = hash_of_pieces(&self.pieces, extent_count(size_bytes, extent_bytes));
            if Some(is) != self.of.wanted(extent) {
                return Err(ReadError::Corrupt { extent });
            }
            self.pieces.clear();
        }
        Ok(Some(hashed.bytes))
    }
}

impl Iterator for ShardPieces {
    type Item = Result<Vec<u8>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let piece = self.next_piece();
        self.has_failed = piece.is_err();
        piece.transpose()
    }
}
