//! A node: its machine (processes, disk, clocks), and its agent's loop around the real lease and the real reconciliation
//! (`agent/src/agent_loop`).

use std::collections::{BTreeMap, BTreeSet};

use outlast_control::plan::SaveCost;
use outlast_control::state::{ExitRecord, Holder, Observation, Registration, Tier};
use outlast_types::{BootId, CheckpointSeq, DiskId, JobId, NodeId, Profile, RegistrationId};

use crate::agent_session::BACKOFF_US;
use crate::assigned::{Desired, OrderKey, ShardKey, WorkerKey};
use crate::clock::Clock;
use crate::event::{AgentTimer, Host, Receipt, UpMsg, What};
use crate::heart::Heart;
use crate::process::Proc;
use crate::reconcile::{Action, Life, NewestAttempts, Terms, reconcile};
use crate::saves::Save;
use crate::shards::{Fetch, Stored};
use crate::upkeep::OrderState;
use crate::world::World;

const TICK_US: u64 = 50_000;
const RESEND_MS: u64 = 1_500;
const BATCH_MAX: usize = 256;

/// What survives the agent, and a reboot.
#[derive(Default)]
pub(crate) struct Folder {
    pub(crate) acted_index: u64,
    /// How often it was registered.
    pub(crate) registrations: u64,
    /// Workers whose folder is not marked as over, with the boot that they were started in.
    pub(crate) workers: BTreeMap<WorkerKey, (crate::assigned::Assigned, u32)>,
    pub(crate) shards: BTreeMap<ShardKey, Stored>,
}

/// A worker as the loop tracks it.
#[derive(Clone, Debug)]
pub(crate) struct Tracked {
    pub(crate) life: Life,
    pub(crate) assigned: Option<crate::assigned::Assigned>,
    /// Its process on the machine.
    pub(crate) proc: Option<u64>,
    pub(crate) is_adopted: bool,
    pub(crate) is_fenced: bool,
    pub(crate) exit: Option<ExitRecord>,
    pub(crate) is_applied: bool,
    pub(crate) start: Option<crate::worker::StartPhase>,
    pub(crate) save_cost: Option<SaveCost>,
}

impl Tracked {
    pub(crate) fn is_alive(&self) -> bool {
        self.life != Life::Over
    }
    pub(crate) fn has_processes(&self) -> bool {
        self.is_alive() && (self.proc.is_some() || self.is_adopted)
    }
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_alive() && !self.has_processes()
    }
    pub(crate) fn never_was() -> Self {
        Self {
            life: Life::Over,
            assigned: None,
            proc: None,
            is_adopted: false,
            is_fenced: false,
            exit: None,
            is_applied: false,
            start: None,
            save_cost: None,
        }
    }
}

pub(crate) struct Link {
    pub(crate) coord: usize,
    pub(crate) number: u64,
    pub(crate) registration: RegistrationId,
    pub(crate) welcomed: bool,
}

pub(crate) struct Agent {
    pub(crate) node: NodeId,
    pub(crate) up: bool,
    pub(crate) run: u32,
    pub(crate) paused_until: u64,
    /// The whole machine stands still until then.
    pub(crate) frozen_until: u64,
    /// Shards that this machine found damaged, for the observers.
    pub(crate) set_aside: BTreeSet<ShardKey>,
    /// The machine has power.
    pub(crate) powered: bool,
    pub(crate) boot: u32,
    pub(crate) disk: u32,
    pub(crate) clock: Clock,
    pub(crate) disk_full: bool,
    pub(crate) folder: Folder,
    pub(crate) procs: BTreeMap<u64, Proc>,
    // The loop's memory.
    pub(crate) registration: RegistrationId,
    pub(crate) registered_at: Option<u64>,
    pub(crate) awaits_first_state: bool,
    pub(crate) message: Option<(Registration, Vec<WorkerKey>)>,
    pub(crate) heart: Heart,
    pub(crate) link: Option<Link>,
    pub(crate) link_granted_ms: u64,
    pub(crate) lags_since: Option<u64>,
    pub(crate) is_hedging: bool,
    pub(crate) has_news: bool,
    pub(crate) desired: Option<Desired>,
    pub(crate) tracked: BTreeMap<WorkerKey, Tracked>,
    pub(crate) newest: NewestAttempts,
    pub(crate) first_observation: u64,
    pub(crate) observations: Vec<Observation>,
    pub(crate) observations_sent_ms: Option<u64>,
    pub(crate) receipts: BTreeMap<ShardKey, Receipt>,
    /// What the log said of checkpoints; whether it was sealed.
    pub(crate) fates: BTreeMap<(JobId, CheckpointSeq), bool>,
    pub(crate) saves: BTreeMap<u64, Save>,
    pub(crate) fetches: BTreeMap<u64, Fetch>,
    pub(crate) orders: BTreeMap<OrderKey, OrderState>,
    pub(crate) backoff_us: u64,
}

impl Agent {
    pub(crate) fn new(node: NodeId, clock: Clock) -> Self {
        Self {
            node,
            up: false,
            run: 1,
            paused_until: 0,
            frozen_until: 0,
            set_aside: BTreeSet::new(),
            powered: true,
            boot: 1,
            disk: 1,
            clock,
            disk_full: false,
            folder: Folder::default(),
            procs: BTreeMap::new(),
            registration: RegistrationId(0),
            registered_at: None,
            awaits_first_state: false,
            message: None,
            heart: Heart::new(Profile::Lan),
            link: None,
            link_granted_ms: 0,
            lags_since: None,
            is_hedging: false,
            has_news: false,
            desired: None,
            tracked: BTreeMap::new(),
            newest: NewestAttempts::default(),
            first_observation: 1,
            observations: Vec::new(),
            observations_sent_ms: None,
            receipts: BTreeMap::new(),
            fates: BTreeMap::new(),
            saves: BTreeMap::new(),
            fetches: BTreeMap::new(),
            orders: BTreeMap::new(),
            backoff_us: BACKOFF_US.0,
        }
    }

    pub(crate) fn boot_id(&self) -> BootId {
        BootId::new(format!("boot-{}-{}", self.node, self.boot)).expect("a valid name")
    }

    pub(crate) fn disk_id(&self) -> DiskId {
        DiskId::new(format!("disk-{}-{}", self.node, self.disk)).expect("a valid name")
    }

    pub(crate) fn holder(&self) -> Holder {
        Holder { node: self.node.clone(), boot: self.boot_id(), disk: self.disk_id(), tier: Tier::Disk }
    }

    /// The process is gone; its folder and what runs on the machine are not.
    fn forget(&mut self) {
        let kept = Self::new(self.node.clone(), self.clock.clone());
        let old = std::mem::replace(self, kept);
        self.run = old.run + 1;
        (self.powered, self.boot, self.disk, self.disk_full) =
            (old.powered, old.boot, old.disk, old.disk_full);
        (self.folder, self.procs, self.paused_until) = (old.folder, old.procs, old.paused_until);
        (self.frozen_until, self.set_aside) = (old.frozen_until, old.set_aside);
    }

    pub(crate) fn observe(&mut self, observation: Observation) {
        self.observations.push(observation);
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.registered_at.is_some() && !self.heart.is_closed()
    }

    pub(crate) fn observed(&mut self, number: u64) -> Vec<Observation> {
        let count = number.saturating_add(1).saturating_sub(self.first_observation) as usize;
        let count = count.min(self.observations.len());
        self.first_observation += count as u64;
        self.observations.drain(..count).collect()
    }

    /// A2, and rule three of the desired state.
    pub(crate) fn may_start(&self, now_us: u64, index: u64) -> bool {
        self.is_registered()
            && self.heart.may_start(self.clock.boot(now_us))
            && index >= self.heart.assignments_index()
    }
}

impl World {
    pub(crate) fn start_agent(&mut self, a: usize) {
        if self.agents[a].up || !self.agents[a].powered {
            return;
        }
        let registration = RegistrationId(self.rng.next() | 1);
        let agent = &mut self.agents[a];
        agent.up = true;
        agent.registration = registration;
        agent.folder.registrations += 1;
        agent.link_granted_ms = agent.clock.boot(self.now).0;
        self.adopt_workers(a);
        self.after(Host::Agent(a), 1, What::Agent(AgentTimer::Tick));
        self.after(Host::Agent(a), 1, What::Agent(AgentTimer::Connect));
        self.after(Host::Agent(a), SCRUB_US, What::Agent(AgentTimer::Scrub));
    }

    /// The process dies; its workers go on under their keepers.
    pub(crate) fn crash_agent(&mut self, a: usize) {
        if !self.agents[a].up {
            return;
        }
        if let Some(link) = &self.agents[a].link {
            self.reset_stream(link.number, Host::Agent(a));
        }
        self.agents[a].forget();
        // Who waits for a save gets no answer, and trains on.
        let waiting = self.agents[a].procs.iter().filter(|(_, proc)| proc.saving);
        let waiting: Vec<(u64, u64)> = waiting.map(|(id, proc)| (*id, proc.step)).collect();
        waiting.into_iter().for_each(|(id, step)| self.train_on(a, id, step));
    }

    pub(crate) fn handle_agent(&mut self, a: usize, timer: AgentTimer) {
        match timer {
            AgentTimer::Tick => {
                self.agent_pass(a);
                self.after(Host::Agent(a), TICK_US, What::Agent(AgentTimer::Tick));
            }
            AgentTimer::Connect => self.connect(a),
            AgentTimer::WelcomeOver(number) => {
                let waits = |link: &Link| link.number == number && !link.welcomed;
                if self.agents[a].link.as_ref().is_some_and(waits) {
                    self.leave(a);
                }
            }
            AgentTimer::HedgeOver => self.agents[a].is_hedging = false,
            AgentTimer::Start(key) => self.start_step(a, key),
            AgentTimer::Step(proc) => self.proc_step(a, proc),
            AgentTimer::Killed(proc) => self.proc_ends(a, proc),
            AgentTimer::Fence(proc) => self.proc_fence(a, proc),
            AgentTimer::Save(save) => self.save_step(a, save),
            AgentTimer::SaveOver(save, tries) => self.save_over(a, save, tries),
            AgentTimer::Copy(save) => self.copy_step(a, save),
            AgentTimer::CopyOver(save, tries) => self.copy_over(a, save, tries),
            AgentTimer::OrderDone(order) => self.order_step(a, order),
            AgentTimer::FetchOver(fetch, tries) => self.fetch_over(a, fetch, tries),
            AgentTimer::Scrub => {
                self.scrub(a);
                self.after(Host::Agent(a), SCRUB_US, What::Agent(AgentTimer::Scrub));
            }
        }
    }

    /// What the loop does after each event: the lease before anything that touches the network or the disk (A5).
    pub(crate) fn agent_pass(&mut self, a: usize) {
        if !self.agents[a].up {
            return;
        }
        self.keep_lease(a);
        self.reconcile_agent(a);
        self.reconcile_orders(a);
        self.send_due(a);
    }

    fn reconcile_agent(&mut self, a: usize) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(desired) = &agent.desired else { return };
        let known: BTreeMap<WorkerKey, Life> =
            agent.tracked.iter().map(|(key, tracked)| (*key, tracked.life)).collect();
        let terms = Terms {
            may_start: agent.may_start(now, desired.index),
            first_of_registration: agent.awaits_first_state,
        };
        let actions = reconcile(desired, &known, &agent.newest, terms);
        if actions.iter().any(|action| !matches!(action, Action::Update(_))) {
            agent.folder.acted_index = agent.folder.acted_index.max(desired.index);
        }
        agent.awaits_first_state = false;
        for action in actions {
            self.act(a, action);
        }
        let agent = &mut self.agents[a];
        let Some(desired) = &agent.desired else { return };
        let listed: BTreeSet<WorkerKey> = desired.workers.iter().map(|worker| worker.key).collect();
        agent
            .tracked
            .retain(|key, tracked| tracked.is_alive() || !tracked.is_applied || listed.contains(key));
    }

    fn send_due(&mut self, a: usize) {
        let agent = &mut self.agents[a];
        if !agent.is_registered() {
            return;
        }
        self.leave_laggard(a);
        self.beat(a);
        self.send_observations(a);
    }

    fn send_observations(&mut self, a: usize) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now).0;
        let under_way = agent.observations_sent_ms.is_some_and(|at| now.saturating_sub(at) < RESEND_MS);
        if agent.observations.is_empty() || under_way {
            return;
        }
        let Some(number) = agent.link.as_ref().filter(|link| link.welcomed).map(|link| link.number) else {
            return;
        };
        let first = agent.first_observation;
        let observations: Vec<Observation> = agent.observations.iter().take(BATCH_MAX).cloned().collect();
        agent.observations_sent_ms = Some(now);
        self.stream_up(a, number, UpMsg::Observations { first, observations });
    }
}

const SCRUB_US: u64 = 20_000_000;
