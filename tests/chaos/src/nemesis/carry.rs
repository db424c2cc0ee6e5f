//! Carries faults out when their time comes, and writes down what really happened.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::kind::{Kind, Track};
use super::plan::Planned;
use super::{agents, coordinators, network};
use crate::bed::Bed;
use crate::history::{Phase, Recorder, What};
use crate::rng::Rng;

/// How long a fault waits for targets that another one has.
const CLAIM_MAX: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One fault under way.
pub(crate) struct Fault<'a> {
    pub(crate) bed: &'a Bed,
    recorder: &'a Recorder,
    pub(crate) planned: &'a Planned,
    pub(crate) rng: Rng,
    targets: Vec<String>,
    /// What it has to itself until its end.
    claimed: Vec<String>,
}

/// What became of it: whether it did what its name says, and what is worth knowing.
pub(crate) struct Effect {
    pub(crate) effective: bool,
    pub(crate) note: String,
}

impl Effect {
    pub(crate) fn of(effective: bool, note: impl Into<String>) -> Self {
        Self { effective, note: note.into() }
    }
}

impl Fault<'_> {
    /// Takes these to itself, waiting a little for other faults.
    ///
    /// # Errors
    /// When they stay busy.
    pub(crate) async fn claim(&mut self, names: &[String]) -> Result<()> {
        let began = Instant::now();
        while !self.bed.claim(names) {
            anyhow::ensure!(began.elapsed() < CLAIM_MAX, "another fault has {}", names.join(", "));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.claimed = names.to_vec();
        self.targets = names.to_vec();
        Ok(())
    }

    /// Who leads, waiting a little for somebody to.
    ///
    /// # Errors
    /// When nobody does for as long.
    pub(crate) async fn leader(&self) -> Result<String> {
        let began = Instant::now();
        loop {
            match self.bed.leader().await {
                Err(_) if began.elapsed() < CLAIM_MAX => tokio::time::sleep(LOOK_EVERY).await,
                leader => return leader,
            }
        }
    }

    /// What it hits, where it needs nothing to itself.
    pub(crate) fn aim(&mut self, targets: &[String]) {
        self.targets = targets.to_vec();
    }

    /// It is in force from now on, and whoever does it knows until when.
    pub(crate) fn begin(&self, note: &str) {
        self.put(Phase::Begin, note, false);
    }

    /// It is in force from now on, for as long as was planned.
    pub(crate) async fn hold(&self, note: &str) {
        self.begin(note);
        tokio::time::sleep(Duration::from_millis(self.planned.hold_ms)).await;
    }

    fn put(&self, phase: Phase, note: &str, effective: bool) {
        let nemesis = self.planned.kind.name().to_owned();
        let (targets, note) = (self.targets.clone(), note.to_owned());
        self.recorder.put(What::Fault { id: self.planned.id, nemesis, phase, targets, note, effective });
    }
}

pub(crate) struct Nemeses {
    pub(crate) bed: Arc<Bed>,
    pub(crate) recorder: Recorder,
}

impl Nemeses {
    /// All faults of the plan; returns when each has healed what it did.
    pub(crate) async fn run(&self, plan: &[Planned]) {
        let began = tokio::time::Instant::now();
        let track = |track: Track| async move {
            for planned in plan.iter().filter(|planned| planned.kind.about().track == track) {
                tokio::time::sleep_until(began + Duration::from_millis(planned.at_ms)).await;
                self.carry_out(planned).await;
            }
        };
        tokio::join!(track(Track::Coordinators), track(Track::Agents), track(Track::Network));
    }

    async fn carry_out(&self, planned: &Planned) {
        let rng = Rng::new(planned.roll);
        let (bed, recorder) = (&*self.bed, &self.recorder);
        let mut fault = Fault { bed, recorder, planned, rng, targets: Vec::new(), claimed: Vec::new() };
        let done = dispatch(&mut fault).await;
        match done {
            Ok(Effect { effective, note }) => fault.put(Phase::End, &note, effective),
            Err(err) => fault.put(Phase::Skipped, &format!("{err:#}"), false),
        }
        self.bed.release(&fault.claimed);
    }
}

async fn dispatch(fault: &mut Fault<'_>) -> Result<Effect> {
    match fault.planned.kind {
        Kind::KillLeader => coordinators::kill_leader(fault).await,
        Kind::PauseLeader => coordinators::pause_leader(fault).await,
        Kind::PowerCut => coordinators::power_cut(fault, false).await,
        Kind::PowerCutAll => coordinators::power_cut(fault, true).await,
        Kind::IoErrors => coordinators::io_errors(fault).await,
        Kind::FullDisk => coordinators::full_disk(fault).await,
        Kind::SlowDisk => coordinators::slow_disk(fault).await,
        Kind::BitRotLog => coordinators::bit_rot(fault).await,
        Kind::Clock => coordinators::clock(fault).await,
        Kind::Membership => coordinators::membership(fault).await,
        Kind::RollingRestart => coordinators::rolling_restart(fault).await,
        Kind::KillAgent => agents::kill(fault, false).await,
        Kind::KillNode => agents::kill(fault, true).await,
        Kind::KillKeeper => agents::kill_below(fault, agents::Below::Keeper).await,
        Kind::KillWorker => agents::kill_below(fault, agents::Below::Worker).await,
        Kind::PauseAgent => agents::pause(fault).await,
        Kind::PowerCutNode => agents::power_cut(fault).await,
        Kind::FullDiskNode => agents::full_disk(fault).await,
        Kind::BitRotShard => agents::bit_rot(fault).await,
        Kind::ClockNode => agents::clock(fault).await,
        Kind::PartitionLeader => network::partition_leader(fault).await,
        Kind::PartitionOneWay => network::partition_one_way(fault).await,
        Kind::PartitionBridge => network::partition_bridge(fault).await,
        Kind::PartitionAgent => network::partition_agent(fault).await,
        Kind::PacketLoss => network::packet_loss(fault).await,
    }
}
