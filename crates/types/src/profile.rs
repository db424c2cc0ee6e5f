//! Timer profiles: Raft, heartbeat, lease and kill budget in one setting, so that they always fit each other.
//!
//! Numbers and the inequality are those of the lease protocol (see `ARCHITECTURE.md`, "Who is alive").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Millis;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Coordinators on one local network, disks that fsync within some tens of milliseconds.
    #[default]
    Lan,
    /// Coordinators in several sites, or slow disks.
    Wan,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProfileError {
    #[error("{0:?} is not a timer profile: use lan or wan")]
    Unknown(String),
    #[error(
        "the lease ({lease_ms} ms) must be at least {needed_ms} ms: worst leader gap + barrier + 2 heartbeats + confirm batch + kill budget"
    )]
    LeaseTooShort { lease_ms: Millis, needed_ms: Millis },
}

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "lan" => Ok(Profile::Lan),
            "wan" => Ok(Profile::Wan),
            other => Err(ProfileError::Unknown(other.to_owned())),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Lan => "lan",
            Profile::Wan => "wan",
        })
    }
}

/// All timers, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    pub raft_heartbeat_ms: Millis,
    pub election_min_ms: Millis,
    pub election_max_ms: Millis,
    /// Worst time from a leader's death until its successor has been elected.
    pub worst_leader_gap_ms: Millis,
    /// Commit of the barrier entry, with room for one slow fsync.
    pub barrier_ms: Millis,
    /// H: an agent's heartbeat.
    pub heartbeat_ms: Millis,
    /// Q: how long the leader collects heartbeats before one quorum round confirms them all.
    pub confirm_ms: Millis,
    /// K: what a keeper needs to stop an `exclusive` worker.
    pub kill_budget_ms: Millis,
    /// D: the lease.
    pub lease_ms: Millis,
    /// δ: scheduling slack.
    pub slack_ms: Millis,
}

/// ε = 1 %: covers clock rates that are off by up to 0.4 % on each side.
const CLOCK_RATE_MARGIN_PER_MILLE: u64 = 10;

impl Timers {
    pub const fn of(profile: Profile) -> Self {
        match profile {
            Profile::Lan => Self {
                raft_heartbeat_ms: 100,
                election_min_ms: 400,
                election_max_ms: 800,
                worst_leader_gap_ms: 1_750,
                barrier_ms: 200,
                heartbeat_ms: 500,
                confirm_ms: 100,
                kill_budget_ms: 500,
                lease_ms: 4_000,
                slack_ms: 300,
            },
            Profile::Wan => Self {
                raft_heartbeat_ms: 250,
                election_min_ms: 1_000,
                election_max_ms: 2_000,
                worst_leader_gap_ms: 4_400,
                barrier_ms: 400,
                heartbeat_ms: 1_000,
                confirm_ms: 100,
                kill_budget_ms: 1_000,
                lease_ms: 8_000,
                slack_ms: 300,
            },
        }
    }

    /// D ≥ worst leader gap + barrier + 2H + Q + K.
    ///
    /// # Errors
    /// Refuses timers under which a leader's death could cost a healthy node its lease (invariant 8 of the design).
    pub fn check(&self) -> Result<(), ProfileError> {
        let needed_ms = self.worst_leader_gap_ms
            + self.barrier_ms
            + 2 * self.heartbeat_ms
            + self.confirm_ms
            + self.kill_budget_ms;
        if self.lease_ms < needed_ms {
            return Err(ProfileError::LeaseTooShort { lease_ms: self.lease_ms, needed_ms });
        }
        Ok(())
    }

    /// How long one operation of the log's disk may take before the disk counts as hung. By then a leader that was writing
    /// has lost its leadership in any case, because it sends no heartbeats while it waits; slower disks than that cannot be
    /// lived with, faster ones must not be taken for hung.
    pub const fn disk_hung_after_ms(&self) -> Millis {
        self.worst_leader_gap_ms + self.slack_ms
    }

    /// D(1+ε)+δ: what the leader waits after a confirmed heartbeat before it may give the lease away; also the grace
    /// G of a new leader.
    pub const fn leader_lease_ms(&self) -> Millis {
        self.lease_ms + self.lease_ms * CLOCK_RATE_MARGIN_PER_MILLE / 1_000 + self.slack_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_counts_as_hung_only_when_a_writing_leader_would_have_been_replaced() {
        for profile in [Profile::Lan, Profile::Wan] {
            let timers = Timers::of(profile);
            assert!(timers.disk_hung_after_ms() > timers.worst_leader_gap_ms, "{profile}");
            assert!(
                timers.disk_hung_after_ms() < timers.lease_ms,
                "an idle leader is found out within a lease"
            );
        }
    }

    #[test]
    fn both_profiles_keep_the_inequality_and_a_broken_one_is_refused() {
        for profile in [Profile::Lan, Profile::Wan] {
            Timers::of(profile).check().expect("shipped profiles fit");
        }
        let broken = Timers { lease_ms: 2_000, ..Timers::of(Profile::Lan) };
        assert!(matches!(broken.check(), Err(ProfileError::LeaseTooShort { lease_ms: 2_000, .. })));
    }
}
