//! A small cluster in memory: commands go in, every invariant is checked after each one, and nothing is real.

use std::collections::BTreeMap;

use outlast_control::plan::{Now, Observations, Plan, PlannedSeal, plan};
use outlast_control::state::{
    AdoptedWorker, ClusterState, Command, Envelope, Event, ExitRecord, Holder, Incarnation, NodeFeatures,
    Observation, Refusal, Registration, Response, SealedShard, Tier,
};
use outlast_types::{
    Actor, AttemptId, BootId, BootTime, ByteSize, CheckpointSeq, ClusterId, CoordinatorId, Digest, DiskId,
    Durability, ExitStatus, GpuDevice, GroupId, JobId, JobSpec, NodeId, NodeResources, Profile,
    RegistrationId, RequestId, WallTime, spec,
};
use serde_json::{Value, json};

pub(crate) struct World {
    pub(crate) state: ClusterState,
    pub(crate) seen: Observations,
    pub(crate) index: u64,
    pub(crate) boot_ms: u64,
    /// Everything applied, for replay.
    pub(crate) log: Vec<(u64, Envelope)>,
    /// What the last command said.
    pub(crate) events: Vec<Event>,
    observed: BTreeMap<NodeId, u64>,
    requests: u64,
}

pub(crate) fn node(n: u64) -> NodeId {
    NodeId::new(format!("n{n}")).expect("valid")
}
pub(crate) fn group(job: u64) -> GroupId {
    GroupId { job: JobId(job), index: 0 }
}
pub(crate) fn attempt(job: u64, number: u64) -> AttemptId {
    AttemptId { group: group(job), generation: 1, number }
}
pub(crate) fn ck(seq: u64) -> CheckpointSeq {
    CheckpointSeq(seq)
}
pub(crate) fn root(n: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Digest(bytes)
}
pub(crate) fn holder(n: u64) -> Holder {
    Holder { node: node(n), boot: boot_id(n), disk: disk_id(n), tier: Tier::Disk }
}
fn boot_id(n: u64) -> BootId {
    BootId::new(format!("boot-{n}")).expect("valid")
}
fn disk_id(n: u64) -> DiskId {
    DiskId::new(format!("disk-{n}")).expect("valid")
}

/// A training job of two workers with one cpu each; `change` overlays the keys of its job file.
pub(crate) fn job_spec(name: &str, change: &Value) -> JobSpec {
    let mut file = json!({
        "name": name, "kind": "training", "command": ["train"], "workers": 2,
        "resources": {"cpus": 1, "memory": "1GiB"}, "checkpoint": {"keep": 1},
    });
    let keys = change.as_object().expect("a mapping");
    file.as_object_mut().expect("a mapping").extend(keys.clone());
    spec::parse(&file).expect("a valid job file")
}

pub(crate) fn registration(n: u64, run: u64) -> Registration {
    Registration {
        node: node(n),
        registration: RegistrationId(n * 100 + run),
        serial: run,
        boot: boot_id(n),
        disk: disk_id(n),
        address: format!("127.0.0.1:{}", 7_000 + n),
        data_address: None,
        resources: NodeResources {
            cpu_millis: 4_000,
            memory: ByteSize(8 << 30),
            gpus: (0..2).map(|index| GpuDevice { index, model: "test".to_owned() }).collect(),
            custom: BTreeMap::new(),
        },
        labels: BTreeMap::new(),
        features: NodeFeatures { cgroup_fence: true, cgroup_memory: true, object_store: true },
        feature_level: 1,
        adopted: Vec::new(),
        exited: Vec::new(),
    }
}

pub(crate) fn exit(status: ExitStatus) -> ExitRecord {
    ExitRecord { status, at: WallTime(1), detail: String::new(), last_lines: vec!["bye".to_owned()] }
}

impl World {
    /// Initialised, with a leader and `nodes` registered nodes, each a failure domain of its own.
    pub(crate) fn new(nodes: u64) -> Self {
        let mut world = Self {
            state: ClusterState::new(),
            seen: Observations::new(BootTime(0)),
            index: 0,
            boot_ms: 0,
            log: Vec::new(),
            events: Vec::new(),
            observed: BTreeMap::new(),
            requests: 0,
        };
        world.does(Command::InitCluster {
            cluster_id: ClusterId::new("test").expect("valid"),
            profile: Profile::Lan,
            address: "127.0.0.1:7400".to_owned(),
        });
        world.send(Command::Barrier { coordinator: CoordinatorId(1) });
        for n in 1..=nodes {
            world.register(registration(n, 1));
        }
        world
    }

    /// Applies a command of its own entry and checks every invariant.
    pub(crate) fn send(&mut self, command: Command) -> Response {
        self.requests += 1;
        let request = RequestId::new(format!("q{}", self.requests)).expect("valid");
        let keeps = matches!(command, Command::SubmitJob { .. });
        self.send_as(keeps.then_some(request), command)
    }

    pub(crate) fn send_as(&mut self, request: Option<RequestId>, command: Command) -> Response {
        self.index += 1;
        let at = WallTime(1_000_000 + self.boot_ms);
        let envelope = Envelope { request, actor: Actor::System, source: None, cause: None, at, command };
        let (response, events) = self.state.apply(self.index, &envelope);
        if let Err(broken) = self.state.check_invariants() {
            panic!("{:?} broke {broken:#?}", envelope.command);
        }
        self.log.push((self.index, envelope));
        self.events = events;
        response
    }

    /// A command that must be accepted.
    pub(crate) fn does(&mut self, command: Command) -> Response {
        let what = format!("{command:?}");
        let response = self.send(command);
        assert!(!matches!(response, Response::Refused(_)), "{what} was refused: {response:?}");
        response
    }

    /// A command that must be refused, and change nothing.
    pub(crate) fn refused(&mut self, command: Command) -> Refusal {
        let what = format!("{command:?}");
        let mut before = self.state.clone();
        let response = self.send(command);
        before.applied = self.index;
        // Decided refusals of submissions are remembered for their request ids; nothing else may differ.
        before.requests = self.state.requests.clone();
        before.request_order = self.state.request_order.clone();
        before.next_request = self.state.next_request;
        assert!(before == self.state, "a refusal of {what} changed the state");
        assert!(self.events.is_empty(), "a refusal of {what} said {:?}", self.events);
        match response {
            Response::Refused(refusal) => refusal,
            other => panic!("{what} was accepted: {other:?}"),
        }
    }

    /// The cluster goes on as a new one; its only coordinator leads at once.
    pub(crate) fn recover(&mut self) {
        let command = Command::OpenGeneration {
            cluster_id: ClusterId::new(format!("test-{}", self.state.generation + 1)).expect("valid"),
            address: format!("127.0.0.1:{}", 8_000 + self.state.generation),
            feature_level: 1,
            reason: "test".to_owned(),
        };
        let coordinator = match self.does(command) {
            Response::CoordinatorAdded(coordinator) => coordinator,
            other => panic!("{other:?}"),
        };
        let opened = std::mem::take(&mut self.events);
        self.does(Command::Barrier { coordinator });
        self.seen = Observations::new(BootTime(self.boot_ms));
        self.events = opened;
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.state.incarnation.expect("a leader")
    }

    pub(crate) fn register(&mut self, registration: Registration) {
        self.observed.insert(registration.node.clone(), 0);
        self.does(Command::RegisterNode(Box::new(registration)));
    }

    pub(crate) fn lose(&mut self, n: u64) {
        let registration = self.state.nodes[&node(n)].registration;
        let incarnation = self.incarnation();
        self.does(Command::NodeLost { node: node(n), registration, incarnation });
        self.seen.forget_node(&node(n));
    }

    pub(crate) fn submit(&mut self, name: &str, change: &Value) -> JobId {
        let command = Command::SubmitJob { spec: Box::new(job_spec(name, change)), bundle: None };
        match self.does(command) {
            Response::JobSubmitted(job) => job,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn observe(&mut self, n: u64, observation: Observation) {
        let first = self.observed.get(&node(n)).copied().unwrap_or(0) + 1;
        let registration = self.state.nodes[&node(n)].registration;
        self.does(Command::Observe { node: node(n), registration, first, observations: vec![observation] });
        self.observed.insert(node(n), first);
    }

    /// The node that an attempt's rank is on, as a number.
    pub(crate) fn place(&self, attempt: AttemptId, rank: u32) -> u64 {
        let seat = self.state.attempt(&attempt).and_then(|attempt| attempt.assignment(rank)).expect("a seat");
        seat.node.as_str()[1..].parse().expect("n and a number")
    }

    pub(crate) fn places(&self, attempt: AttemptId) -> Vec<u64> {
        let world = self.state.attempt(&attempt).expect("an attempt").world_size();
        (0..world).map(|rank| self.place(attempt, rank)).collect()
    }

    pub(crate) fn started(&mut self, attempt: AttemptId) {
        for (n, rank) in self.places(attempt).into_iter().zip(0..) {
            self.observe(n, Observation::Started { attempt, rank });
        }
    }

    pub(crate) fn exited(&mut self, attempt: AttemptId, rank: u32, status: ExitStatus) {
        self.observe(self.place(attempt, rank), Observation::Exited { attempt, rank, exit: exit(status) });
    }

    pub(crate) fn released(&mut self, attempt: AttemptId, rank: u32) {
        self.observe(self.place(attempt, rank), Observation::Released { attempt, rank });
    }

    pub(crate) fn release_all(&mut self, attempt: AttemptId) {
        for rank in 0..self.places(attempt).len() as u32 {
            let seat =
                self.state.attempt(&attempt).and_then(|attempt| attempt.assignment(rank)).expect("a seat");
            if seat.is_held() {
                self.released(attempt, rank);
            }
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { boot: BootTime(self.boot_ms), wall: WallTime(1_000_000 + self.boot_ms) }
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.boot_ms += ms;
    }

    /// One pass, not carried out.
    pub(crate) fn look(&mut self) -> Plan {
        let now = self.now();
        self.seen.follow(&self.state, now);
        plan(&self.state, &self.seen, now)
    }

    /// One pass, carried out.
    pub(crate) fn pass(&mut self) -> Plan {
        let planned = self.look();
        for seal in &planned.seals {
            self.does(seal_command(seal));
        }
        for planned in &planned.commands {
            self.does(planned.command.clone());
        }
        planned
    }

    /// A job with its first attempt running.
    pub(crate) fn running_job(&mut self, name: &str, change: &Value) -> AttemptId {
        let job = self.submit(name, change);
        self.pass();
        let attempt = attempt(job.0, 1);
        self.started(attempt);
        attempt
    }

    pub(crate) fn open(&mut self, attempt: AttemptId, step: u64) -> CheckpointSeq {
        match self.does(Command::OpenCheckpoint { attempt, step, in_turn: false }) {
            Response::CheckpointOpened(seq) => seq,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn seal_of(&self, attempt: AttemptId, seq: CheckpointSeq, holders: &[u64]) -> Command {
        let world = self.state.attempt(&attempt).expect("an attempt").world_size();
        let holders: Vec<Holder> = holders.iter().map(|n| holder(*n)).collect();
        let durability = if holders.len() > 1 { Durability::Replicated } else { Durability::Local };
        let shard = |rank| SealedShard { rank, root: root(9), size_bytes: 10, holders: holders.clone() };
        Command::SealCheckpoint {
            job: attempt.group.job,
            seq,
            attempt,
            manifest_root: root(seq.0),
            shards: (0..world).map(shard).collect(),
            durability,
            degraded: false,
        }
    }

    /// Opens and seals.
    pub(crate) fn sealed(&mut self, attempt: AttemptId, step: u64, holders: &[u64]) -> CheckpointSeq {
        let seq = self.open(attempt, step);
        self.does(self.seal_of(attempt, seq, holders));
        seq
    }

    /// A holder of every rank has read it back.
    pub(crate) fn prove(&mut self, seq: CheckpointSeq) {
        let incarnation = self.incarnation();
        self.does(Command::ProveCheckpoint { job: JobId(1), seq, incarnation });
    }

    pub(crate) fn receive(&mut self, attempt: AttemptId, seq: CheckpointSeq, holders: &[u64]) {
        let world = self.state.attempt(&attempt).expect("an attempt").world_size();
        for rank in 0..world {
            let holders: Vec<Holder> = holders.iter().map(|n| holder(*n)).collect();
            self.seen.note_receipt((attempt.group.job, seq), rank, root(9), 10, holders);
        }
    }
}

pub(crate) fn seal_command(seal: &PlannedSeal) -> Command {
    Command::SealCheckpoint {
        job: seal.job,
        seq: seal.seq,
        attempt: seal.attempt,
        manifest_root: root(seal.seq.0),
        shards: seal.shards.clone(),
        durability: seal.durability,
        degraded: seal.degraded,
    }
}

pub(crate) fn adopted(attempt: AttemptId, rank: u32) -> AdoptedWorker {
    AdoptedWorker { attempt, rank }
}
