//! What a seed makes of a run: how large, which faults, how often. Each kind of fault is there in some runs only, so that
//! each is also met without the others (swarm testing: Groce et al., ISSTA 2012).

use std::collections::BTreeMap;

use outlast_types::spec::{Every, HangAfter, OnBusy};
use outlast_types::{
    ByteSize, CheckpointPolicy, GpuDevice, JobKind, JobSpec, NodeResources, Resources, Span, Workers,
};

use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) coords: usize,
    pub(crate) agents: usize,
    /// Of the time in which faults happen.
    pub(crate) chaos_us: u64,
    /// Mean time between two faults.
    pub(crate) fault_every_us: u64,
    pub(crate) kinds: Kinds,
    /// In a thousand calls.
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) slow: u64,
    pub(crate) breaks_ppm: u64,
    /// Of a worker's step, in a million.
    pub(crate) crash_ppm: u64,
    pub(crate) hang_ppm: u64,
    /// Clocks run fast or slow by up to this.
    pub(crate) rate_ppm: u64,
    pub(crate) zones: bool,
    pub(crate) jobs: u64,
    pub(crate) apply_lag: bool,
}

/// Which faults this run knows.
#[derive(Clone, Debug)]
pub(crate) struct Kinds {
    pub(crate) crash_coord: bool,
    pub(crate) pause_coord: bool,
    pub(crate) crash_agent: bool,
    pub(crate) pause_agent: bool,
    pub(crate) power_off: bool,
    pub(crate) cut: bool,
    pub(crate) disks: bool,
    pub(crate) wall: bool,
    /// Machines that stand still with their clocks. Breaks the assumption of the leases.
    pub(crate) freeze: bool,
}

impl Scenario {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let coords = [1, 3, 3, 3, 3, 5][rng.index(6)];
        let agents = rng.within(2, 6) as usize;
        let kinds = Kinds {
            crash_coord: rng.per_mille(600),
            pause_coord: rng.per_mille(400),
            crash_agent: rng.per_mille(600),
            pause_agent: rng.per_mille(400),
            power_off: rng.per_mille(500),
            cut: rng.per_mille(500),
            disks: rng.per_mille(500),
            wall: rng.per_mille(300),
            freeze: rng.per_mille(100),
        };
        let some = |rng: &mut Rng, share, value| if rng.per_mille(share) { value } else { 0 };
        Self {
            coords,
            agents,
            chaos_us: rng.within(30, 90) * 1_000_000,
            fault_every_us: rng.within(500, 6_000) * 1_000,
            kinds,
            loss: some(rng, 400, rng.clone().within(1, 60)),
            doubled: some(rng, 500, rng.clone().within(1, 60)),
            slow: some(rng, 500, rng.clone().within(1, 80)),
            breaks_ppm: some(rng, 500, rng.clone().within(100, 10_000)),
            crash_ppm: some(rng, 500, rng.clone().within(100, 6_000)),
            hang_ppm: some(rng, 250, rng.clone().within(50, 1_500)),
            rate_ppm: rng.below(4_000),
            zones: rng.per_mille(400),
            jobs: rng.within(2, 7),
            apply_lag: rng.per_mille(300),
        }
    }

    /// Whether the clocks keep what the leases need of them.
    pub(crate) fn clocks_hold(&self) -> bool {
        !self.kinds.freeze
    }

    pub(crate) fn node_resources(&self) -> NodeResources {
        let gpus = (0..2).map(|index| GpuDevice { index, model: "sim".to_owned() }).collect();
        NodeResources { cpu_millis: 4_000, memory: ByteSize(8 << 30), gpus, custom: BTreeMap::new() }
    }

    pub(crate) fn labels(&self, agent: usize) -> BTreeMap<String, String> {
        if !self.zones {
            return BTreeMap::new();
        }
        BTreeMap::from([("zone".to_owned(), format!("z{}", agent % 3))])
    }

    pub(crate) fn job(&self, rng: &mut Rng, number: u64) -> JobSpec {
        let kind =
            [JobKind::Training, JobKind::Training, JobKind::Training, JobKind::Batch, JobKind::Service]
                [rng.index(5)];
        let workers = rng.within(1, 3) as u32;
        let every = if rng.per_mille(900) { Every::Steps(rng.within(3, 15)) } else { Every::Auto };
        let resources = Resources {
            cpu_millis: [500, 1_000, 2_000][rng.index(3)],
            memory: ByteSize(256 << 20),
            gpus: if rng.per_mille(200) { 1 } else { 0 },
            custom: BTreeMap::new(),
        };
        let hang_after =
            if kind == JobKind::Training { HangAfter::After(Span::from_secs(10)) } else { HangAfter::Never };
        JobSpec {
            name: format!("job-{number}"),
            kind,
            command: vec!["train".to_owned()],
            workers: Workers { min: workers, max: workers },
            resources,
            env: BTreeMap::from([("STEPS".to_owned(), rng.within(20, 120).to_string())]),
            checkpoint: CheckpointPolicy {
                every,
                keep: rng.within(1, 3) as u32,
                durability: None,
                on_busy: OnBusy::Skip,
            },
            recovery: outlast_types::spec::RecoveryPolicy {
                max_user_failures: rng.within(3, 20) as u32,
                hang_after,
                stop_grace: Span::from_secs(2),
                restore_wait: Span::from_secs(rng.within(5, 30)),
            },
            placement: outlast_types::spec::Placement::default(),
            ready: None,
            exclusive: rng.per_mille(350),
            retention: Span::from_secs(if rng.per_mille(400) { rng.within(5, 60) } else { 86_400 }),
        }
    }
}
