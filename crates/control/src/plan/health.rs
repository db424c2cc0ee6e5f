//! What a node says of its own health, and what keeps new work away from it. It never makes a node Lost: who can say that
//! it is ill is alive, and what runs there may well go on.

use outlast_types::{ByteSize, Millis};

/// The canary writes once a second. A disk that holds a small write back for so long would hold back the start of a
/// worker and the saving of its checkpoints too.
pub const DISK_CANARY_AGE_MAX_MS: Millis = 10_000;
/// As much as the largest bundle, which is unpacked before its worker starts.
pub const DISK_FREE_MIN_BYTES: u64 = 256 << 20;
/// A small disk is not full before less than this part of it is free.
const DISK_FREE_MIN_PART: u64 = 20;

/// As a heartbeat carries it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeHealth {
    /// Since a small write in the agent's data folder was last on the disk.
    pub disk_canary_age_ms: Millis,
    /// The longest that the agent's loop was late since the heartbeat before.
    pub loop_lag_ms: Millis,
    pub disk_free_bytes: u64,
    /// 0: the file system does not say.
    pub disk_size_bytes: u64,
    pub gpu_error: Option<String>,
    /// The slowest of the peers that were tried when the agent registered; 0: none was there.
    pub network_bytes_per_s: u64,
    /// What that test found wrong. It keeps nothing away: what is seen from one side may be fine from the others.
    pub network_error: Option<String>,
}

impl NodeHealth {
    /// Why nothing new goes there; `None`: it may.
    pub fn complaint(&self) -> Option<String> {
        if self.disk_canary_age_ms > DISK_CANARY_AGE_MAX_MS {
            let age_s = self.disk_canary_age_ms / 1_000;
            return Some(format!("its disk has finished no small write for {age_s} s"));
        }
        let free_min = DISK_FREE_MIN_BYTES.min(self.disk_size_bytes / DISK_FREE_MIN_PART);
        (self.disk_free_bytes < free_min).then(|| {
            let (free, size) = (ByteSize(self.disk_free_bytes), ByteSize(self.disk_size_bytes));
            format!("its disk is full: {free} of {size} are free, and new work needs {}", ByteSize(free_min))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn complaint(age_ms: Millis, free: u64, size: u64) -> Option<String> {
        let disk = NodeHealth { disk_free_bytes: free, disk_size_bytes: size, ..NodeHealth::default() };
        NodeHealth { disk_canary_age_ms: age_ms, ..disk }.complaint()
    }

    #[test]
    fn a_hung_disk_and_a_full_one_are_named() {
        assert_eq!(complaint(DISK_CANARY_AGE_MAX_MS, GIB, 100 * GIB), None);
        let hung = complaint(DISK_CANARY_AGE_MAX_MS + 1_000, GIB, 100 * GIB).expect("hung");
        assert!(hung.contains("for 11 s"), "{hung}");
        assert_eq!(complaint(0, DISK_FREE_MIN_BYTES, 100 * GIB), None);
        let full = complaint(0, DISK_FREE_MIN_BYTES - 1, 100 * GIB).expect("full");
        assert!(full.contains("its disk is full") && full.contains("256MiB"), "{full}");
    }

    #[test]
    fn a_small_disk_has_a_small_floor_and_one_that_says_nothing_has_none() {
        let (free, size) = (2 << 20, 24 << 20);
        assert_eq!(complaint(0, free, size), None);
        assert!(complaint(0, 1 << 20, size).is_some());
        assert_eq!(complaint(0, 0, 0), None);
    }
}
