//! The kinds of faults, and what each needs of the machine.

use anyhow::{Result, bail};

/// Faults of one track come one after the other; those of different tracks at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Track {
    Coordinators,
    Agents,
    Network,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Namespaces,
    Disks,
    SlowDisks,
    /// A time namespace.
    Clocks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    KillLeader,
    PauseLeader,
    PowerCut,
    PowerCutAll,
    IoErrors,
    FullDisk,
    SlowDisk,
    BitRotLog,
    Clock,
    Membership,
    RollingRestart,
    KillAgent,
    KillNode,
    KillKeeper,
    KillWorker,
    PauseAgent,
    PowerCutNode,
    FullDiskNode,
    BitRotShard,
    ClockNode,
    PartitionLeader,
    PartitionOneWay,
    PartitionBridge,
    PartitionAgent,
    PacketLoss,
}

pub(crate) struct About {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) track: Track,
    pub(crate) needs: Needs,
    /// How long it is held, in milliseconds, from and to.
    pub(crate) hold_ms: (u64, u64),
    /// What doing and healing it may take beside that.
    pub(crate) around_ms: u64,
}

const fn about(
    kind: Kind,
    name: &'static str,
    track: Track,
    needs: Needs,
    hold_ms: (u64, u64),
    around_ms: u64,
) -> About {
    About { kind, name, track, needs, hold_ms, around_ms }
}

/// Long enough for a new leader where one is wanted, and for a lease of 4 s to run out where nodes are hit; some shorter,
/// so that both sides of each timer are seen.
pub(crate) const ALL: &[About] = &[
    about(Kind::KillLeader, "kill-leader", Track::Coordinators, Needs::Nothing, (200, 4_000), 1_000),
    about(Kind::PauseLeader, "pause-leader", Track::Coordinators, Needs::Nothing, (500, 6_000), 500),
    about(Kind::PowerCut, "power-cut", Track::Coordinators, Needs::Disks, (500, 3_000), 2_000),
    about(Kind::PowerCutAll, "power-cut-all", Track::Coordinators, Needs::Disks, (500, 2_000), 4_000),
    about(Kind::IoErrors, "io-errors", Track::Coordinators, Needs::Disks, (3_000, 6_000), 2_000),
    about(Kind::FullDisk, "full-disk", Track::Coordinators, Needs::Disks, (2_000, 5_000), 2_000),
    about(Kind::SlowDisk, "slow-disk", Track::Coordinators, Needs::SlowDisks, (3_000, 6_000), 1_000),
    about(Kind::BitRotLog, "bit-rot-log", Track::Coordinators, Needs::Nothing, (1_000, 2_000), 10_000),
    about(Kind::Clock, "clock", Track::Coordinators, Needs::Clocks, (100, 1_000), 1_000),
    about(Kind::Membership, "membership", Track::Coordinators, Needs::Nothing, (500, 2_000), 10_000),
    about(Kind::RollingRestart, "rolling-restart", Track::Coordinators, Needs::Nothing, (500, 1_500), 8_000),
    about(Kind::KillAgent, "kill-agent", Track::Agents, Needs::Nothing, (200, 3_000), 500),
    about(Kind::KillNode, "kill-node", Track::Agents, Needs::Nothing, (4_500, 8_000), 500),
    about(Kind::KillKeeper, "kill-keeper", Track::Agents, Needs::Nothing, (500, 2_000), 500),
    about(Kind::KillWorker, "kill-worker", Track::Agents, Needs::Nothing, (500, 2_000), 500),
    about(Kind::PauseAgent, "pause-agent", Track::Agents, Needs::Nothing, (1_000, 8_000), 500),
    about(Kind::PowerCutNode, "power-cut-node", Track::Agents, Needs::Disks, (1_000, 6_000), 2_000),
    about(Kind::FullDiskNode, "full-disk-node", Track::Agents, Needs::Disks, (2_000, 6_000), 1_000),
    about(Kind::BitRotShard, "bit-rot-shard", Track::Agents, Needs::Nothing, (500, 2_000), 500),
    about(Kind::ClockNode, "clock-node", Track::Agents, Needs::Clocks, (100, 3_000), 1_000),
    about(
        Kind::PartitionLeader,
        "partition-leader",
        Track::Network,
        Needs::Namespaces,
        (4_000, 8_000),
        2_000,
    ),
    about(
        Kind::PartitionOneWay,
        "partition-one-way",
        Track::Network,
        Needs::Namespaces,
        (3_000, 8_000),
        2_000,
    ),
    about(
        Kind::PartitionBridge,
        "partition-bridge",
        Track::Network,
        Needs::Namespaces,
        (3_000, 8_000),
        2_000,
    ),
    about(Kind::PartitionAgent, "partition-agent", Track::Network, Needs::Namespaces, (2_000, 9_000), 2_000),
    about(Kind::PacketLoss, "packet-loss", Track::Network, Needs::Namespaces, (4_000, 8_000), 1_000),
];

impl Kind {
    pub(crate) fn about(self) -> &'static About {
        ALL.iter().find(|about| about.kind == self).expect("the table has every kind")
    }

    pub(crate) fn name(self) -> &'static str {
        self.about().name
    }
}

/// A choice that gives every kind of disturbance its turn in two minutes.
const SHORT: &[Kind] = &[
    Kind::KillLeader,
    Kind::PauseLeader,
    Kind::PowerCut,
    Kind::IoErrors,
    Kind::Clock,
    Kind::KillAgent,
    Kind::KillNode,
    Kind::KillKeeper,
    Kind::PauseAgent,
    Kind::PowerCutNode,
    Kind::PartitionLeader,
    Kind::PartitionOneWay,
    Kind::PartitionAgent,
    Kind::PacketLoss,
];

/// `all`, `short`, or names with commas between them.
///
/// # Errors
/// A name that is none.
pub(crate) fn choose(text: &str) -> Result<Vec<Kind>> {
    match text {
        "all" => return Ok(ALL.iter().map(|about| about.kind).collect()),
        "short" => return Ok(SHORT.to_vec()),
        _ => {}
    }
    let mut chosen = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match ALL.iter().find(|about| about.name == name) {
            Some(about) => chosen.push(about.kind),
            None => {
                let names: Vec<&str> = ALL.iter().map(|about| about.name).collect();
                bail!("there is no nemesis {name:?}: write all, short, or some of {}", names.join(", "))
            }
        }
    }
    Ok(chosen)
}
