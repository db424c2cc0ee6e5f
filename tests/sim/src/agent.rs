//! An agent's host. Its session, its list of coordinators, its heart and lease, its reconciliation, its queue of
//! observations, its receipts and its reading of the wire are the agent's own files; the loop around them is this one,
//! which follows `agent/src/agent_loop` with workers that only count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::ShardKey;
use outlast_control::state::{
    AdoptedWorker, ExitRecord, FORMAT_VERSION, Holder, NodeFeatures, Observation, Registration, Tier,
};
use outlast_host::{boot_now, wall_now};
use outlast_proto::convert::ReportedProgress;
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_types::{
    BootId, BootTime, ByteSize, CheckpointSeq, Digest, DiskId, ExitStatus, NodeId, NodeResources, Profile,
    RegistrationId,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::assigned::{Assigned, Desired, RestoreFrom, WorkerKey};
use crate::checkpoints::{Checkpoints, Fate, Part};
use crate::coordinators::{Coordinators, random};
use crate::event::Event;
use crate::heart::Heart;
use crate::node::{Machine, SharedFleet};
use crate::observations::Observations;
use crate::oracle::Shared;
use crate::reconcile::{Action, Life, NewestAttempts, StopReason, Terms, reconcile};
use crate::session::{Link, Session, SessionEvent};

const START_AGAIN_AFTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);
const RESEND_AFTER_MS: u64 = 1_500;
const HEDGE_WITHIN: Duration = Duration::from_millis(1_600);
const LAG_MAX_MS: u64 = 1_000;
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// A worker that is told to stop needs this, or its grace where that is shorter.
const STOP_MS: u64 = 80;
/// Reading a shard from whoever has it.
const RESTORE_MS: u64 = 150;

struct Tracked {
    life: Life,
    assigned: Option<Assigned>,
    exit: Option<ExitRecord>,
    is_applied: bool,
    is_fenced: bool,
    /// While it is being started.
    began: BootTime,
    said_rendezvous: bool,
    is_opening: bool,
}

impl Tracked {
    fn new(life: Life, assigned: Option<Assigned>) -> Self {
        Self {
            life,
            assigned,
            exit: None,
            is_applied: false,
            is_fenced: false,
            began: boot_now(),
            said_rendezvous: false,
            is_opening: false,
        }
    }

    fn is_exclusive(&self) -> bool {
        self.assigned.as_ref().is_some_and(|assigned| assigned.exclusive)
    }
}

pub(crate) struct Agent {
    name: String,
    fleet: SharedFleet,
    oracle: Shared,
    coordinators: Arc<Coordinators>,
    checkpoints: Checkpoints,
    events: mpsc::Sender<Event>,
    registration: RegistrationId,
    registered_at: Option<u64>,
    awaits_first_state: bool,
    message: Option<(Registration, Vec<WorkerKey>)>,
    heart: Heart,
    link: Option<Link>,
    link_granted_at: BootTime,
    lags_since: Option<BootTime>,
    is_hedging: bool,
    has_news: bool,
    desired: Option<Desired>,
    workers: BTreeMap<WorkerKey, Tracked>,
    newest: NewestAttempts,
    observations: Observations,
    observations_sent_at: Option<BootTime>,
    is_over: bool,
}

/// Runs until the host crashes. An agent that the cluster sends away ends, and its supervisor starts it again.
pub(crate) async fn run(
    name: String,
    coordinators: Vec<String>,
    fleet: SharedFleet,
    oracle: Shared,
) -> turmoil::Result {
    loop {
        live(name.clone(), coordinators.clone(), fleet.clone(), oracle.clone()).await;
        tokio::time::sleep(START_AGAIN_AFTER).await;
    }
}

async fn live(name: String, coordinators: Vec<String>, fleet: SharedFleet, oracle: Shared) {
    let (events, mut queue) = mpsc::channel(1_024);
    let coordinators = Arc::new(Coordinators::new(coordinators));
    let session = Session { coordinators: coordinators.clone(), events: events.clone() };
    fleet.borrow_mut().machines.entry(name.clone()).or_default().registrations += 1;
    let mut agent = Agent {
        name,
        fleet,
        oracle,
        coordinators,
        checkpoints: Checkpoints::new(),
        events,
        registration: RegistrationId(random()),
        registered_at: None,
        awaits_first_state: false,
        message: None,
        heart: Heart::new(Profile::default()),
        link: None,
        link_granted_at: boot_now(),
        lags_since: None,
        is_hedging: false,
        has_news: false,
        desired: None,
        workers: BTreeMap::new(),
        newest: NewestAttempts::default(),
        observations: Observations::new(),
        observations_sent_at: None,
        is_over: false,
    };
    agent.adopt();
    let shutdown = CancellationToken::new();
    tokio::spawn(session.run(shutdown.clone()));
    let _guard = shutdown.drop_guard();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !agent.is_over {
        tokio::select! {
            biased;
            Some(event) = queue.recv() => {
                agent.keep_lease();
                agent.handle(event);
            }
            _ = tick.tick() => {}
        }
        agent.keep_lease();
        agent.watch_workers();
        agent.reconcile();
        agent.start_waiting();
        agent.send();
    }
}

impl Agent {
    fn machine<T>(&self, use_it: impl FnOnce(&mut Machine) -> T) -> T {
        use_it(self.fleet.borrow_mut().machines.entry(self.name.clone()).or_default())
    }

    fn note(&self, line: &str) {
        self.oracle.borrow_mut().note(format!("{} {line}", self.name));
    }

    /// What a predecessor left: workers go on under their keepers, and of those that have none the end is told.
    fn adopt(&mut self) {
        let folders = self.machine(|machine| machine.folders.clone());
        for (key, assigned) in folders {
            self.newest.saw(key.attempt);
            let mut tracked = Tracked::new(Life::Running, Some(assigned));
            if self.machine(|machine| !machine.procs.contains_key(&key)) {
                tracked.life = Life::Over;
                tracked.exit = Some(record(ExitStatus::KeeperLost));
                self.workers.insert(key, tracked);
                self.observe_end(key);
            } else {
                self.workers.insert(key, tracked);
                let ended = |machine: &mut Machine| machine.procs.get_mut(&key)?.end();
                if key.rank == 0 && self.machine(ended).is_none() {
                    self.say_rendezvous(key);
                }
                self.observations.push(Observation::Ready { attempt: key.attempt, rank: key.rank });
            }
        }
    }

    fn say_rendezvous(&mut self, key: WorkerKey) {
        let address = format!("{}:9999", self.name);
        self.observations.push(Observation::Rendezvous { attempt: key.attempt, address });
    }

    fn observe_end(&mut self, key: WorkerKey) {
        let WorkerKey { attempt, rank } = key;
        if let Some(exit) = self.workers.get(&key).and_then(|tracked| tracked.exit.clone()) {
            self.observations.push(Observation::Exited { attempt, rank, exit });
        }
        self.observations.push(Observation::Released { attempt, rank });
    }

    fn ended(&mut self, key: WorkerKey, exit: Option<ExitRecord>) {
        let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| tracked.life != Life::Over) else {
            return;
        };
        tracked.life = Life::Over;
        tracked.exit = exit;
        self.observe_end(key);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Hedged(answer) => {
                self.is_hedging = false;
                if let Ok(grant) = answer {
                    self.handle_grant(&grant);
                }
            }
            Event::Opened(key, step, opened) => self.save(key, step, opened),
            Event::Session(SessionEvent::HelloWanted(reply)) => drop(reply.send(self.hello())),
            Event::Session(SessionEvent::Welcomed(link, welcome)) => self.handle_welcome(link, welcome),
            Event::Session(SessionEvent::Message(number, message)) => {
                if self.link.as_ref().is_some_and(|link| link.number == number) {
                    self.handle_message(message);
                }
            }
            Event::Session(SessionEvent::Closed { number, .. }) => {
                self.link.take_if(|link| link.number == number);
            }
            Event::Session(SessionEvent::Refused(registration, refused)) => {
                if registration != self.registration {
                    return;
                }
                if refused.register_anew {
                    self.register_anew(&refused.reason);
                } else if refused.r#final {
                    // Nobody else has its folder, so nobody can have taken its place.
                    let told = format!("30: {} is refused for good: {}", self.name, refused.reason);
                    self.oracle.borrow_mut().broken(told);
                    self.is_over = true;
                }
            }
            Event::Session(SessionEvent::Succeeded(_)) => {
                self.oracle.borrow_mut().broken(format!("{} met another cluster", self.name));
            }
        }
    }

    fn has_process(&self, key: &WorkerKey) -> bool {
        self.machine(|machine| machine.procs.contains_key(key))
    }

    fn hello(&mut self) -> Option<pb::Hello> {
        if self.heart.is_closed() {
            return None;
        }
        if self.message.is_none() {
            let is_unsettled =
                |(key, tracked): (&WorkerKey, &Tracked)| tracked.life != Life::Over && !self.has_process(key);
            if self.workers.iter().any(is_unsettled) {
                return None;
            }
            self.message = Some(self.registration_message());
        }
        let (registration, _) = self.message.clone()?;
        let (cluster_id, desired_index, mut held) = self.machine(|machine| {
            let held: Vec<_> = machine.shards.keys().map(|key| (key.job, key.seq)).collect();
            (machine.cluster_id.clone(), machine.acted_index, held)
        });
        held.dedup();
        let held = held
            .into_iter()
            .map(|(job, seq)| pb::CheckpointRef { job: job.to_string(), checkpoint: seq.to_string() })
            .collect();
        Some(pb::Hello { registration: Some(registration.into()), cluster_id, desired_index, held })
    }

    fn registration_message(&self) -> (Registration, Vec<WorkerKey>) {
        let alive = self.workers.iter().filter(|(_, tracked)| tracked.life != Life::Over);
        let adopted = alive.map(|(key, _)| AdoptedWorker { attempt: key.attempt, rank: key.rank }).collect();
        let over = || self.workers.iter().filter(|(_, t)| t.life == Life::Over && !t.is_applied);
        let exited = over().filter_map(|(key, t)| Some((key.attempt, key.rank, t.exit.clone()?))).collect();
        let gone = over().map(|(key, _)| *key).collect();
        let registration = Registration {
            node: self.node(),
            registration: self.registration,
            serial: self.machine(|machine| machine.registrations),
            boot: self.boot(),
            disk: self.disk(),
            address: format!("{}:7401", self.name),
            data_address: None,
            resources: NodeResources {
                cpu_millis: 4_000,
                memory: ByteSize(8 << 30),
                gpus: Vec::new(),
                custom: BTreeMap::new(),
            },
            labels: BTreeMap::new(),
            features: NodeFeatures { cgroup_fence: true, cgroup_memory: true, object_store: false },
            feature_level: FORMAT_VERSION,
            adopted,
            exited,
        };
        (registration, gone)
    }

    fn node(&self) -> NodeId {
        NodeId::new(self.name.clone()).expect("a valid name")
    }
    fn boot(&self) -> BootId {
        let boot = self.machine(|machine| machine.boot);
        BootId::new(format!("boot-{}-{boot}", self.name)).expect("a valid name")
    }
    fn disk(&self) -> DiskId {
        DiskId::new(format!("disk-{}", self.name)).expect("a valid name")
    }

    fn handle_welcome(&mut self, link: Link, welcome: pb::Welcome) {
        if link.registration != self.registration {
            link.leave();
            return;
        }
        self.note(&format!("is welcome at {} as of {}", link.coordinator, welcome.index));
        self.machine(|machine| machine.cluster_id = welcome.cluster_id);
        self.coordinators.learn(welcome.coordinators);
        if self.registered_at.is_none() {
            self.registered_at = Some(welcome.index);
            self.awaits_first_state = true;
            self.heart = Heart::new(welcome.profile.parse().unwrap_or_default());
            for key in self.message.as_ref().map(|(_, over)| over.clone()).unwrap_or_default() {
                self.applied(key);
            }
        }
        self.link = Some(link);
        self.link_granted_at = boot_now();
        self.observations_sent_at = None;
        self.has_news = true;
    }

    fn applied(&mut self, key: WorkerKey) {
        if let Some(tracked) = self.workers.get_mut(&key) {
            tracked.is_applied = true;
        }
        self.machine(|machine| {
            machine.folders.remove(&key);
            machine.procs.remove(&key);
        });
    }

    fn handle_message(&mut self, message: Down) {
        match message {
            Down::Lease(grant) => {
                self.link_granted_at = boot_now();
                self.handle_grant(&grant);
            }
            Down::Desired(state) => {
                let newest = self.desired.as_ref().map_or(0, |desired| desired.index);
                let acted = self.machine(|machine| machine.acted_index);
                if state.index < newest.max(acted).max(self.registered_at.unwrap_or(u64::MAX)) {
                    return;
                }
                let (desired, refused) = Desired::from_wire(state);
                if let Some(err) = refused.first() {
                    self.oracle.borrow_mut().broken(format!("a wanted worker is not understood: {err}"));
                }
                desired.workers.iter().for_each(|worker| self.newest.saw(worker.key.attempt));
                self.desired = Some(desired);
            }
            Down::Observed(pb::Observed { number }) => {
                for observation in self.observations.applied(number) {
                    if let Observation::Released { attempt, rank } = observation {
                        self.applied(WorkerKey { attempt, rank });
                    }
                }
                self.observations_sent_at = None;
            }
            Down::Checkpoints(updates) => updates.updates.into_iter().for_each(|update| self.fate(&update)),
            Down::Welcome(_) | Down::Refused(_) | Down::Succeeded(_) => {}
        }
    }

    fn fate(&mut self, update: &pb::CheckpointUpdate) {
        let (Ok(job), Ok(seq)) = (update.job.parse(), update.checkpoint.parse::<CheckpointSeq>()) else {
            return self.oracle.borrow_mut().broken(format!("an update is not understood: {update:?}"));
        };
        if update.state == "gone" {
            return self.checkpoints.gone(job, seq);
        }
        let Some(fate) = Fate::of(&update.state) else { return };
        if fate.bytes_may_go() {
            self.machine(|machine| machine.shards.retain(|key, _| (key.job, key.seq) != (job, seq)));
        }
        self.note(&format!("hears that {job} {seq} is {}", update.state));
        self.checkpoints.decided(job, seq, fate);
    }

    fn handle_grant(&mut self, grant: &pb::LeaseGrant) {
        if RegistrationId(grant.registration) != self.registration {
            return;
        }
        let now = boot_now();
        self.heart.granted(grant.ack_seq, grant.lease_ms, grant.incarnation, grant.assignments_index, now);
        let Some(deadline) = self.heart.deadline().filter(|_| !self.heart.is_closed()) else { return };
        let keys: Vec<_> = self.exclusive(|life| life != Life::Over);
        self.machine(|machine| {
            for key in keys {
                let Some(proc) = machine.procs.get_mut(&key) else { continue };
                if proc.end().is_none() {
                    proc.deadline = Some(deadline);
                }
            }
        });
    }

    fn exclusive(&self, wanted: impl Fn(Life) -> bool) -> Vec<WorkerKey> {
        let is = |tracked: &Tracked| tracked.is_exclusive() && wanted(tracked.life);
        self.workers.iter().filter(|(_, tracked)| is(tracked)).map(|(key, _)| *key).collect()
    }

    fn keep_lease(&mut self) {
        let now = boot_now();
        if self.heart.fence_due(now) {
            for key in self.exclusive(Life::may_be_killed) {
                self.stop(key, 0, None);
                if let Some(tracked) = self.workers.get_mut(&key) {
                    tracked.is_fenced = true;
                }
            }
        }
        if self.heart.expired(now)
            && !self.heart.is_closed()
            && !self.exclusive(|l| l != Life::Over).is_empty()
        {
            self.heart.close();
            self.leave();
        }
        if self.heart.is_closed() && self.exclusive(|life| life != Life::Over).is_empty() {
            self.register_anew("the exclusive workers that outlived the lease are gone");
        }
    }

    fn stop(&mut self, key: WorkerKey, grace_ms: u64, why: Option<StopReason>) {
        let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| tracked.life != Life::Over) else {
            return;
        };
        tracked.life = Life::Stopping { grace_ms };
        self.oracle.borrow_mut().note(format!("{} stops {key}: {why:?}", self.name));
        if !self.has_process(&key) {
            return self.ended(key, None);
        }
        let at = boot_now().plus(grace_ms.min(STOP_MS));
        self.machine(|machine| machine.procs.get_mut(&key).map(|proc| proc.stop(at)));
    }

    /// Ends, and saves that are due.
    fn watch_workers(&mut self) {
        let running = self.workers.iter().filter(|(_, tracked)| tracked.life != Life::Over);
        let running: Vec<WorkerKey> = running.map(|(key, _)| *key).collect();
        for key in running {
            let seen = self.machine(|machine| {
                let proc = machine.procs.get_mut(&key)?;
                let end = proc.end();
                let every = proc.assigned.checkpoint_every_steps;
                let due = proc.step().checked_div(every).map_or(0, |saves| saves * every);
                Some((end, (due > proc.saved_step).then_some(due)))
            });
            let Some((end, due)) = seen else { continue };
            if let Some(mut status) = end {
                if self.workers.get(&key).is_some_and(|tracked| tracked.is_fenced) && !status.is_success() {
                    status = ExitStatus::Fenced;
                }
                self.note(&format!("{key} ended: {status}"));
                self.ended(key, Some(record(status)));
            } else if let Some(step) = due
                && let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| !tracked.is_opening)
            {
                tracked.is_opening = true;
                self.open(key, step);
            }
        }
    }

    fn open(&self, key: WorkerKey, step: u64) {
        let request = pb::OpenCheckpointRequest {
            node: self.name.clone(),
            registration: self.registration.0,
            attempt: key.attempt.to_string(),
            step,
            cluster_id: self.machine(|machine| machine.cluster_id.clone()),
            in_turn: false,
        };
        let (coordinators, events) = (self.coordinators.clone(), self.events.clone());
        tokio::spawn(async move {
            let opened = coordinators.open_checkpoint(|| request.clone(), OPEN_WITHIN).await;
            if let Err(failure) = &opened {
                tracing::info!(%key, step, %failure, "no checkpoint");
            }
            let seq = opened.ok().flatten().and_then(|text| text.parse().ok());
            let _ = events.send(Event::Opened(key, step, seq)).await;
        });
    }

    /// The bytes are durable at once: of the disks of nodes only what is on them is simulated.
    fn save(&mut self, key: WorkerKey, step: u64, opened: Option<CheckpointSeq>) {
        if let Some(tracked) = self.workers.get_mut(&key) {
            tracked.is_opening = false;
        }
        let is_running = self.machine(|machine| {
            let Some(proc) = machine.procs.get_mut(&key) else { return false };
            proc.saved_step = proc.saved_step.max(step);
            proc.end().is_none()
        });
        let Some(seq) = opened.filter(|_| is_running) else { return };
        let WorkerKey { attempt, rank } = key;
        let part = Part { attempt, seq, rank };
        let root = Digest(*blake3::hash(format!("{attempt} {seq} {rank} {step}").as_bytes()).as_bytes());
        let shard = ShardKey { job: attempt.group.job, attempt, seq, rank };
        self.machine(|machine| machine.shards.insert(shard, (root, step)));
        self.note(&format!("{key} saves {seq} at step {step}"));
        let holder = Holder { node: self.node(), boot: self.boot(), disk: self.disk(), tier: Tier::Disk };
        self.checkpoints.staged(part);
        self.checkpoints.held(part, root, 64, vec![holder], true);
        self.has_news = true;
    }

    fn may_start(&self, desired_index: u64) -> bool {
        self.registered_at.is_some()
            && !self.heart.is_closed()
            && self.heart.may_start(boot_now())
            && desired_index >= self.heart.assignments_index()
            && self.observations.has_room_for_starts()
    }

    fn reconcile(&mut self) {
        let Some(desired) = &self.desired else { return };
        let known: BTreeMap<WorkerKey, Life> =
            self.workers.iter().map(|(key, tracked)| (*key, tracked.life)).collect();
        let terms = Terms {
            may_start: self.may_start(desired.index),
            first_of_registration: self.awaits_first_state,
        };
        let actions = reconcile(desired, &known, &self.newest, terms);
        let index = desired.index;
        if actions.iter().any(|action| !matches!(action, Action::Update(_))) {
            self.machine(|machine| machine.acted_index = machine.acted_index.max(index));
        }
        self.awaits_first_state = false;
        actions.into_iter().for_each(|action| self.act(action));
        let listed: Vec<WorkerKey> =
            self.desired.iter().flat_map(|desired| desired.workers.iter().map(|worker| worker.key)).collect();
        self.workers.retain(|key, t| !(t.life == Life::Over && t.is_applied && !listed.contains(key)));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(assigned) => {
                self.workers.insert(assigned.key, Tracked::new(Life::Starting, Some(*assigned)));
            }
            Action::Stop { key, grace_ms, why } => self.stop(key, grace_ms, Some(why)),
            Action::Forswear(key) => {
                self.workers.insert(key, Tracked::new(Life::Over, None));
                self.observe_end(key);
            }
            Action::Disown(key) => {
                let mut tracked = Tracked::new(Life::Over, None);
                tracked.exit = Some(record(ExitStatus::KeeperLost));
                self.workers.insert(key, tracked);
                self.observe_end(key);
            }
            Action::Update(assigned) => {
                if let Some(tracked) = self.workers.get_mut(&assigned.key) {
                    tracked.assigned = Some(*assigned);
                }
            }
        }
    }

    /// Rendezvous, restore, and the lease once more just before the keeper starts (A2).
    fn start_waiting(&mut self) {
        let starting = self.workers.iter().filter(|(_, tracked)| tracked.life == Life::Starting);
        let starting: Vec<_> =
            starting.filter_map(|(key, t)| Some((*key, t.assigned.clone()?, t.began))).collect();
        for (key, assigned, began) in starting {
            let WorkerKey { attempt, rank } = key;
            if self.has_process(&key) {
                continue;
            }
            if rank == 0
                && self
                    .workers
                    .get_mut(&key)
                    .is_some_and(|t| !std::mem::replace(&mut t.said_rendezvous, true))
            {
                self.say_rendezvous(key);
            }
            if boot_now().since(began) < RESTORE_MS || (rank != 0 && assigned.rendezvous.is_none()) {
                continue;
            }
            let may = !self.newest.supersedes(&attempt)
                && self.desired.as_ref().is_some_and(|desired| self.may_start(desired.index));
            let Some(deadline) = self.heart.deadline().filter(|_| may) else {
                self.ended(key, None);
                continue;
            };
            let from_step = match &assigned.restore {
                None => 0,
                Some(from) if self.can_read(from, rank) => {
                    self.observations.push(Observation::Restored { attempt, rank, seq: from.seq });
                    from.step
                }
                Some(from) => {
                    let reason = "no holder can be reached".to_owned();
                    let seq = from.seq;
                    self.observations.push(Observation::RestoreFailed {
                        attempt,
                        rank,
                        seq,
                        corrupt: false,
                        reason,
                    });
                    self.ended(key, None);
                    continue;
                }
            };
            self.note(&format!("{key} starts at step {from_step}"));
            self.fleet.borrow_mut().check_start(&assigned, from_step, &mut self.oracle.borrow_mut());
            self.machine(|machine| machine.start(assigned, from_step, Some(deadline)));
            if let Some(tracked) = self.workers.get_mut(&key) {
                tracked.life = Life::Running;
            }
            self.observations.push(Observation::Started { attempt, rank });
            self.observations.push(Observation::Ready { attempt, rank });
        }
    }

    /// From the disk of whoever has it; not over the network.
    fn can_read(&self, from: &RestoreFrom, rank: u32) -> bool {
        let key = ShardKey { job: from.attempt.group.job, attempt: from.attempt, seq: from.seq, rank };
        let fleet = self.fleet.borrow();
        let holders =
            std::iter::once(self.name.as_str()).chain(from.holders.iter().map(|peer| peer.node.as_str()));
        let mut machines = holders.filter_map(|node| fleet.machines.get(node));
        machines.any(|machine| machine.shards.get(&key).is_some_and(|(root, _)| *root == from.root))
    }

    fn send(&mut self) {
        if self.registered_at.is_none() || self.heart.is_closed() {
            return;
        }
        let now = boot_now();
        let seen = self.desired.as_ref().map_or(0, |desired| desired.index);
        if seen >= self.heart.assignments_index() || self.link.is_none() {
            self.lags_since = None;
        } else if now.since(*self.lags_since.get_or_insert(now)) > LAG_MAX_MS {
            self.lags_since = None;
            self.leave();
        }
        if self.link.is_some() && now.since(self.link_granted_at) > self.heart.timers().lease_ms {
            self.link_granted_at = now;
            self.leave();
        }
        self.beat(now);
        let is_under_way = self.observations_sent_at.is_some_and(|at| now.since(at) < RESEND_AFTER_MS);
        if let (false, Some(link), Some(batch)) = (is_under_way, &self.link, self.observations.batch())
            && link.send(Up::Observations(batch))
        {
            self.observations_sent_at = Some(now);
        }
    }

    fn beat(&mut self, now: BootTime) {
        if !(self.heart.is_due(now) || self.has_news && self.heart.may_send_extra(now)) {
            return;
        }
        self.has_news = false;
        let is_unanswered = self.heart.is_unanswered(now);
        let seq = self.heart.send(now);
        let progress = self.machine(|machine| {
            let alive = machine.procs.iter_mut().filter_map(|(key, proc)| {
                let (attempt, rank) = (key.attempt, key.rank);
                let metrics = BTreeMap::new();
                proc.end().is_none().then(|| {
                    ReportedProgress { attempt, rank, step: proc.step(), metrics, save_cost: None }.into()
                })
            });
            alive.collect()
        });
        let receipts = self.checkpoints.receipts().into_iter().map(Into::into).collect();
        let health =
            pb::Health { disk_free_bytes: 100 << 30, disk_size_bytes: 200 << 30, ..pb::Health::default() };
        let heartbeat = pb::Heartbeat { seq, progress, receipts, health: Some(health), done: Vec::new() };
        if let Some(link) = &self.link {
            link.send(Up::Heartbeat(heartbeat.clone()));
        }
        if (is_unanswered || self.link.is_none()) && !self.is_hedging {
            self.is_hedging = true;
            let request = pb::HeartbeatRequest {
                cluster_id: self.machine(|machine| machine.cluster_id.clone()),
                node: self.name.clone(),
                registration: self.registration.0,
                heartbeat: Some(heartbeat),
            };
            let (coordinators, events) = (self.coordinators.clone(), self.events.clone());
            tokio::spawn(async move {
                let answer = coordinators.hedge(request, HEDGE_WITHIN).await;
                let _ = events.send(Event::Hedged(answer)).await;
            });
        }
    }

    fn leave(&mut self) {
        if let Some(link) = self.link.take() {
            link.leave();
        }
    }

    fn register_anew(&mut self, why: &str) {
        self.note(&format!("registers anew: {why}"));
        self.registration = RegistrationId(random());
        self.machine(|machine| machine.registrations += 1);
        self.registered_at = None;
        self.message = None;
        self.heart = Heart::new(Profile::default());
        self.desired = None;
        self.lags_since = None;
        self.observations.renumber();
        self.leave();
        let unsettled: Vec<WorkerKey> =
            self.workers.keys().copied().filter(|key| !self.has_process(key)).collect();
        for key in unsettled {
            self.stop(key, 0, None);
        }
    }
}

fn record(status: ExitStatus) -> ExitRecord {
    ExitRecord { status, at: wall_now(), detail: String::new(), last_lines: Vec::new() }
}
