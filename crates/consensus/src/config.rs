//! What a coordinator's consensus is opened with.

use std::path::PathBuf;
use std::time::Duration;

use outlast_types::Timers;

use crate::fatal::FatalHook;

/// Bounds of what may be in flight. The defaults fit a coordinator with some hundreds of MiB.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commands accepted and not yet answered.
    pub commands_in_flight: usize,
    /// Their encoded bytes.
    pub bytes_in_flight: usize,
    /// How long a proposal is waited for before its outcome is called unknown.
    pub propose_deadline: Duration,
    /// How long a quorum round may take.
    pub quorum_deadline: Duration,
    /// How long a membership change is waited for.
    pub membership_deadline: Duration,
    /// Log entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Log bytes after which a snapshot is made.
    pub snapshot_bytes: u64,
    /// Entries below the snapshot that stay for followers that lag a little.
    pub entries_kept: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commands_in_flight: 8_192,
            bytes_in_flight: 16 << 20,
            propose_deadline: Duration::from_secs(5),
            quorum_deadline: Duration::from_secs(2),
            membership_deadline: Duration::from_secs(30),
            snapshot_entries: 20_000,
            snapshot_bytes: 64 << 20,
            entries_kept: 5_000,
        }
    }
}

/// Which disk the log is on.
#[derive(Clone, Debug, Default)]
pub(crate) enum DiskChoice {
    #[default]
    Sled,
    #[cfg(any(test, feature = "testing"))]
    Sim(crate::disk::sim::SimContents),
}

#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// A folder of this coordinator's own.
    pub data_dir: PathBuf,
    /// `host:port` that the other coordinators reach this one at.
    pub advertise: String,
    pub timers: Timers,
    pub limits: Limits,
    /// What happens when the coordinator cannot go on.
    pub fatal: FatalHook,
    /// Whether the disk is measured beside checkpoint-like writes once the coordinator serves; off by default, because
    /// it writes up to 128 MiB.
    pub probe_load: bool,
    pub(crate) disk: DiskChoice,
}

impl ConsensusConfig {
    pub fn new(data_dir: impl Into<PathBuf>, advertise: impl Into<String>, timers: Timers) -> Self {
        let config = Self {
            data_dir: data_dir.into(),
            advertise: advertise.into(),
            timers,
            limits: Limits::default(),
            fatal: FatalHook::default(),
            probe_load: false,
            disk: DiskChoice::default(),
        };
        #[cfg(feature = "simulated")]
        let config = crate::simulated::equipped(config);
        config
    }

    /// openraft's settings. Its own defaults are far too short for disks.
    pub(crate) fn raft(&self, cluster_name: String) -> openraft::Config {
        let config = openraft::Config {
            cluster_name,
            heartbeat_interval: self.timers.raft_heartbeat_ms,
            election_timeout_min: self.timers.election_min_ms,
            election_timeout_max: self.timers.election_max_ms,
            install_snapshot_timeout: 10_000,
            max_payload_entries: 256,
            // The ticker asks for them: it knows whether there is room, and one that fails ends the process.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.limits.entries_kept,
            // Above what the ticker lets gather: a learner that needs a snapshot must not count as up to date, and one that
            // just got it must not be sent another.
            replication_lag_threshold: self.limits.snapshot_entries + self.limits.entries_kept,
            enable_heartbeat: true,
            enable_elect: true,
            enable_tick: true,
            ..openraft::Config::default()
        };
        #[cfg(feature = "simulated")]
        let config = crate::simulated::drawn(config);
        config
    }
}
