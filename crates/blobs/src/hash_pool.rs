//! Hashing on threads of its own, so that neither reading nor writing waits for it: a few for a whole store, because the
//! other cores belong to the workers.
//!
//! The bytes travel: who gives a buffer away cannot change it while it is hashed, and gets it back with its hash.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;

use outlast_types::Digest;
use parking_lot::Mutex;

use crate::extent::{PieceTree, Subtree, subtree};

/// One thread hashes faster than most disks write; four are as fast as any.
const THREADS_MAX: usize = 4;
/// One of so many cores.
const CORES_A_THREAD: usize = 4;
/// Pieces of one shard that are hashed or wait for it: enough that a short stall of the disk or of the hashing is not one
/// of both, and little enough memory to have it for every shard that is being written.
const IN_FLIGHT_MAX: usize = 4;

type HashFn = fn(u64, &[u8]) -> Subtree;

/// The hashing thread panicked over these bytes. Nothing is known of them.
#[derive(Debug, thiserror::Error)]
#[error("the bytes could not be hashed: the hashing thread panicked")]
pub(crate) struct HashDied;

struct Job {
    bytes: Vec<u8>,
    offset: u64,
    reply: mpsc::SyncSender<Hashed>,
}

/// Bytes and their hash.
pub(crate) struct Hashed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) subtree: Subtree,
}

/// A hash that is being made. Dropped, nobody waits for it.
pub(crate) struct Pending(mpsc::Receiver<Hashed>);

impl Pending {
    pub(crate) fn wait(self) -> Result<Hashed, HashDied> {
        self.0.recv().map_err(|_| HashDied)
    }
}

/// Its threads end with it.
pub(crate) struct HashPool {
    /// Bounded by those who ask: each waits for an old answer before it asks for too many.
    jobs: mpsc::Sender<Job>,
    hash: HashFn,
}

impl HashPool {
    pub(crate) fn start() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with((cores / CORES_A_THREAD).clamp(1, THREADS_MAX), subtree)
    }

    pub(crate) fn with(threads: usize, hash: HashFn) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            let thread = thread::Builder::new().name(format!("hash-{number}"));
            if let Err(err) = thread.spawn(move || serve(&queue, hash)) {
                tracing::warn!(error = %err, "a hashing thread cannot be started; fewer do its work");
            }
        }
        Self { jobs, hash }
    }

    /// `offset`: where in the shard the bytes lie. Without any thread they are hashed here and now.
    pub(crate) fn hash(&self, bytes: Vec<u8>, offset: u64) -> Pending {
        let (reply, answer) = mpsc::sync_channel(1);
        if let Err(mpsc::SendError(job)) = self.jobs.send(Job { bytes, offset, reply }) {
            work(job, self.hash);
        }
        Pending(answer)
    }
}

fn serve(queue: &Mutex<mpsc::Receiver<Job>>, hash: HashFn) {
    loop {
        let job = queue.lock().recv();
        let Ok(job) = job else { return };
        work(job, hash);
    }
}

/// A panic ends the process, except where it is built to unwind: there it must not leave somebody waiting for ever.
fn work(Job { bytes, offset, reply }: Job, hash: HashFn) {
    if let Ok(subtree) = catch_unwind(AssertUnwindSafe(|| hash(offset, &bytes))) {
        // Who asked may have given up.
        let _ = reply.send(Hashed { bytes, subtree });
    }
}

/// Hashes a shard piece by piece, in the pool, while its owner goes on.
pub(crate) struct PieceHasher {
    pool: Arc<HashPool>,
    tree: PieceTree,
    in_flight: VecDeque<Pending>,
    piece_bytes: usize,
    next_offset: u64,
}

impl PieceHasher {
    pub(crate) fn new(pool: Arc<HashPool>, piece_bytes: usize, extent_bytes: u64) -> Self {
        let tree = PieceTree::new(piece_bytes as u64, extent_bytes);
        Self { pool, tree, in_flight: VecDeque::new(), piece_bytes, next_offset: 0 }
    }

    /// Takes the next piece; all but the last one are whole. Gives a buffer for the one after it.
    ///
    /// # Errors
    /// Where an earlier one could not be hashed.
    pub(crate) fn push(&mut self, piece: Vec<u8>) -> Result<Vec<u8>, HashDied> {
        assert!(self.next_offset.is_multiple_of(self.piece_bytes as u64), "only the last piece may be short");
        let offset = self.next_offset;
        self.next_offset += piece.len() as u64;
        self.in_flight.push_back(self.pool.hash(piece, offset));
        if self.in_flight.len() < IN_FLIGHT_MAX {
            return Ok(vec![0; self.piece_bytes]);
        }
        self.take_oldest().map(|buffer| buffer.expect("some are in flight"))
    }

    /// The root, and the hashes of the extents.
    ///
    /// # Errors
    /// Where a piece could not be hashed.
    pub(crate) fn finish(mut self) -> Result<(Digest, Vec<[u8; 32]>), HashDied> {
        while self.take_oldest()?.is_some() {}
        Ok(self.tree.finish())
    }

    fn take_oldest(&mut self) -> Result<Option<Vec<u8>>, HashDied> {
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(None) };
        let Hashed { bytes, subtree } = oldest.wait()?;
        self.tree.push(subtree);
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dies_at_the_third(offset: u64, bytes: &[u8]) -> Subtree {
        assert!(offset != 2048, "as it should");
        subtree(offset, bytes)
    }

    fn hash_all(pool: &Arc<HashPool>, bytes: &[u8]) -> Result<(Digest, Vec<[u8; 32]>), HashDied> {
        let mut hasher = PieceHasher::new(Arc::clone(pool), 1024, 4096);
        for piece in bytes.chunks(1024) {
            hasher.push(piece.to_vec())?;
            assert!(hasher.in_flight.len() < IN_FLIGHT_MAX, "memory is bounded");
        }
        hasher.finish()
    }

    #[test]
    fn pieces_make_the_same_hashes_whatever_the_number_of_threads() {
        let bytes: Vec<u8> = (0..40_000u32).map(|n| (n * 31 % 251) as u8).collect();
        for threads in [0, 1, 3] {
            let pool = Arc::new(HashPool::with(threads, subtree));
            let (root, extents) = hash_all(&pool, &bytes).expect("hashed");
            assert_eq!(root.0, *blake3::hash(&bytes).as_bytes(), "{threads} threads");
            assert_eq!(extents.len(), 10);
        }
    }

    #[test]
    fn a_panic_is_an_error_of_those_bytes_and_the_pool_goes_on() {
        let pool = Arc::new(HashPool::with(1, dies_at_the_third));
        let dead = hash_all(&pool, &[7; 20_000]);
        assert!(dead.is_err(), "nobody waits for ever, and no hash is made up");
        let (root, _) = hash_all(&pool, &[7; 2_000]).expect("hashed");
        assert_eq!(root.0, *blake3::hash(&[7; 2_000]).as_bytes());
    }

    #[test]
    fn who_gives_up_harms_nobody() {
        let pool = Arc::new(HashPool::with(1, subtree));
        drop(pool.hash(vec![1; 1024], 0));
        assert!(pool.hash(vec![1; 1024], 0).wait().is_ok());
    }
}
