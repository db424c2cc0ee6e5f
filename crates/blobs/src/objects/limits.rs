//! Every limit of the object-store tier, with its reason.

use std::time::Duration;

/// Small enough to be sent again, large enough that a request's own cost is nothing; S3 wants 5 MiB at least.
const PART_BYTES_MIN: u64 = 16 << 20;
/// S3 takes 10,000 parts; some room is left.
const PARTS_MAX: u64 = 9_000;

#[derive(Clone, Debug)]
pub struct ObjectLimits {
    /// Parts are at least this large (16 MiB), and larger where a shard would have more than 9,000. Shards up to one part
    /// are written by a single request.
    pub part_bytes_min: u64,
    /// Parts of one shard under way at a time (4): about what one connection each needs to fill a fast link.
    pub parts_at_once: usize,
    /// Bytes of parts in memory at a time, for each direction, over all shards (64 MiB). A larger part goes alone. The
    /// agent has 256 MiB for everything but its slots, and the network keeps copies of its own.
    pub bytes_at_once: u64,
    /// A try of a request may take this long (30 s) …
    pub request_timeout: Duration,
    /// … and longer for its bytes, at this rate (512 KiB/s).
    pub bytes_per_second_min: u64,
    /// Tries of one request (6). Those of the crate underneath are off: they would multiply.
    pub tries_max: u32,
    /// Before the second try (250 ms); doubled before each further one, with jitter …
    pub pause_first: Duration,
    /// … up to this (10 s).
    pub pause_max: Duration,
}

impl Default for ObjectLimits {
    fn default() -> Self {
        Self {
            part_bytes_min: PART_BYTES_MIN,
            parts_at_once: 4,
            bytes_at_once: 64 << 20,
            request_timeout: Duration::from_secs(30),
            bytes_per_second_min: 512 << 10,
            tries_max: 6,
            pause_first: Duration::from_millis(250),
            pause_max: Duration::from_secs(10),
        }
    }
}

impl ObjectLimits {
    /// How large the parts of a shard are: whole extents, so that each is verified as it is read.
    pub(super) fn part_bytes(&self, size_bytes: u64, extent_bytes: u64) -> u64 {
        let part = self.part_bytes_min.max(size_bytes.div_ceil(PARTS_MAX)).max(1);
        part.div_ceil(extent_bytes) * extent_bytes
    }

    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        self.request_timeout + Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }

    /// After try number `tries` (from 1) failed. `random` spreads those who failed together over half of it.
    pub(super) fn pause(&self, tries: u32, random: u8) -> Duration {
        let full = self.pause_first.saturating_mul(1 << (tries - 1).min(16)).min(self.pause_max);
        full.mul_f64(0.5 + f64::from(random) / 510.0)
    }

    pub(super) fn pool_kib(&self) -> u32 {
        kib(self.bytes_at_once)
    }

    /// What a part takes from the pool; never more than there is.
    pub(super) fn part_kib(&self, bytes: u64) -> u32 {
        kib(bytes).min(self.pool_kib())
    }
}

fn kib(bytes: u64) -> u32 {
    // 512 GiB are enough for anybody, and fit a semaphore.
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, 1 << 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_extents_and_few_enough() {
        let limits = ObjectLimits::default();
        let (mib, extent) = (1u64 << 20, 16u64 << 20);
        for (size, part) in [(0, 16), (150_000 * mib / 1024, 16), (200_000 * mib, 32), (1 << 40, 128)] {
            assert_eq!(limits.part_bytes(size, extent), part * mib, "{size} bytes");
            assert!(size.div_ceil(limits.part_bytes(size, extent)) <= PARTS_MAX);
        }
        let small = ObjectLimits { part_bytes_min: 10_000, ..limits };
        assert_eq!(small.part_bytes(50_000, 4096), 12_288);
        assert_eq!(small.part_bytes(50_000, 1 << 20), 1 << 20);
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let limits = ObjectLimits::default();
        assert_eq!(limits.pause(1, 255), Duration::from_millis(250));
        assert_eq!(limits.pause(2, 0), Duration::from_millis(250));
        assert_eq!(limits.pause(60, 255), Duration::from_secs(10));
    }
}
