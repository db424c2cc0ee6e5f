//! Everything there is in one run, and its only loop: take the next event, let whom it is for act, look at the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use outlast_control::state::Command;
use outlast_types::{AttemptId, ClusterId, Digest, NodeId, Profile};

use crate::agent::Agent;
use crate::assigned::WorkerKey;
use crate::checks::{Checks, Violation};
use crate::client::Clients;
use crate::clock::Clock;
use crate::coord::Coord;
use crate::coverage::Coverage;
use crate::event::{AgentTimer, Beat, CoordTimer, DownMsg, Event, Host, Msg, Route, UpMsg, What, WorldTimer};
use crate::model_bug::ModelBug;
use crate::net::Net;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::streams::Stream;
use crate::trace::Trace;

/// The ranks of an attempt that run: none is more than a step ahead.
#[derive(Default)]
struct Gang {
    steps: BTreeMap<u32, u64>,
    save_at: Option<u64>,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    queue: Queue,
    pub(crate) scenario: Scenario,
    pub(crate) net: Net,
    pub(crate) coords: Vec<Coord>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) clients: Clients,
    pub(crate) checks: Checks,
    pub(crate) cover: Coverage,
    pub(crate) trace: Trace,
    pub(crate) broken: Option<Violation>,
    pub(crate) model_bug: Option<ModelBug>,
    /// Faults are over.
    pub(crate) healing: bool,
    pub(crate) events: u64,
    /// Of every event, in order: two runs of a seed are one run.
    pub(crate) digest: u64,
    pub(crate) streams: BTreeMap<u64, Stream>,
    gangs: BTreeMap<AttemptId, Gang>,
    /// The step that each root was saved at.
    roots: BTreeMap<Digest, u64>,
    last_id: u64,
}

impl World {
    pub(crate) fn new(seed: u64, trace: Trace, model_bug: Option<ModelBug>) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::draw(&mut rng);
        let clock = |rng: &mut Rng| {
            let rate = rng.within(0, scenario.rate_ppm * 2) as i64 - scenario.rate_ppm as i64;
            Clock::new(rate, rng.within(1_000, 100_000_000))
        };
        let coords: Vec<Coord> =
            (0..scenario.coords).map(|c| Coord::new(c, scenario.coords, clock(&mut rng))).collect();
        let node = |a: usize| NodeId::new(format!("n{a}")).expect("a valid name");
        let agents: Vec<Agent> = (0..scenario.agents).map(|a| Agent::new(node(a), clock(&mut rng))).collect();
        let net = Net::of(&scenario);
        let mut world = Self {
            now: 0,
            rng,
            queue: Queue::default(),
            scenario,
            net,
            coords,
            agents,
            clients: Clients::default(),
            checks: Checks::new(),
            cover: Coverage::default(),
            trace,
            broken: None,
            model_bug,
            healing: false,
            events: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            streams: BTreeMap::new(),
            gangs: BTreeMap::new(),
            roots: BTreeMap::new(),
            last_id: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let counts_unsynced = self.model_bug == Some(ModelBug::AckBeforeSync);
        for c in 0..self.coords.len() {
            self.coords[c].raft.counts_unsynced = counts_unsynced;
            if self.scenario.apply_lag && c > 0 {
                self.coords[c].apply_lag_us = self.rng.below(8_000_000);
            }
            self.start_coord(c);
        }
        // The founder leads first, as in life: the others join it.
        self.coords[0].raft.campaign();
        self.drive(0);
        (0..self.agents.len()).for_each(|a| self.start_agent(a));
        self.after_any(Host::World, 1_000_000, What::World(WorldTimer::NextClient));
        self.after_any(Host::World, 3_000_000, What::World(WorldTimer::NextFault));
        self.after_any(Host::World, CHECK_US, What::World(WorldTimer::Check));
    }

    pub(crate) fn init_command(&self) -> Command {
        Command::InitCluster {
            cluster_id: ClusterId::new("sim").expect("a valid name"),
            profile: Profile::Lan,
            address: "10.0.1.1:7400".to_owned(),
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        self.trace.line(self.now, line);
    }

    pub(crate) fn fail(&mut self, invariant: &'static str, why: impl fmt::Display) {
        let why = why.to_string();
        self.trace(|| format!("BROKEN {invariant}: {why}"));
        self.broken.get_or_insert(Violation { invariant, why, at_us: self.now });
    }

    fn run_of(&self, host: Host) -> u32 {
        match host {
            Host::Coord(c) => self.coords[c].run,
            Host::Agent(a) => self.agents[a].run,
            Host::World => 0,
        }
    }

    /// For the present run of the process.
    pub(crate) fn after(&mut self, to: Host, us: u64, what: What) {
        let run = self.run_of(to);
        self.queue.push(self.now + us, Event { to, run, what });
    }

    /// For whichever run there is then.
    pub(crate) fn after_any(&mut self, to: Host, us: u64, what: What) {
        self.queue.push(self.now + us, Event { to, run: 0, what });
    }

    /// On the machine, whatever becomes of its agent.
    pub(crate) fn on_machine(&mut self, a: usize, us: u64, timer: AgentTimer) {
        self.after_any(Host::Agent(a), us, What::Agent(timer));
    }

    /// One event; `false` where none is left or an invariant is broken.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at, number, event)) = self.queue.pop() else { return false };
        self.now = at;
        self.events += 1;
        self.digest = (self.digest ^ at ^ number.rotate_left(32)).wrapping_mul(0x0100_0000_01b3);
        if let Some(until) = self.frozen_until(&event) {
            self.queue.push(until, event);
        } else if self.is_for_somebody(&event) {
            self.dispatch(event);
        }
        self.broken.is_none()
    }

    /// Whoever stands still gets it later.
    fn frozen_until(&self, event: &Event) -> Option<u64> {
        let until = match event.to {
            Host::Coord(c) => self.coords[c].paused_until,
            Host::Agent(a) => {
                let is_machine = matches!(
                    event.what,
                    What::Agent(AgentTimer::Step(_) | AgentTimer::Killed(_) | AgentTimer::Fence(_))
                );
                if is_machine { self.agents[a].frozen_until } else { self.agents[a].paused_until }
            }
            Host::World => 0,
        };
        (until > self.now).then_some(until)
    }

    fn is_for_somebody(&self, event: &Event) -> bool {
        let same = |run: u32| event.run == 0 || event.run == run;
        match (event.to, &event.what) {
            (Host::World, _) => true,
            (Host::Coord(c), _) => self.coords[c].up && same(self.coords[c].run),
            (
                Host::Agent(a),
                What::Agent(AgentTimer::Step(_) | AgentTimer::Killed(_) | AgentTimer::Fence(_)),
            ) => self.agents[a].powered,
            (Host::Agent(a), _) => self.agents[a].up && same(self.agents[a].run),
        }
    }

    fn dispatch(&mut self, event: Event) {
        if self.trace.is_on() && !is_routine(&event.what) {
            let (to, what) = (event.to, format!("{:?}", event.what));
            self.trace(|| format!("{to:?} {what}"));
        }
        match (event.to, event.what) {
            (Host::Coord(c), What::Coord(timer)) => self.handle_coord(c, timer),
            (Host::Coord(c), What::Msg(from, msg)) => self.coord_hears(c, from, msg),
            (Host::Agent(a), What::Agent(timer)) => self.handle_agent(a, timer),
            (Host::Agent(a), What::Msg(from, msg)) => self.agent_hears(a, from, msg),
            (_, What::World(timer)) => self.handle_world(timer),
            (Host::World, What::Msg(_, Msg::Asked { call, tries, answer })) => {
                self.client_answered(call, tries, answer)
            }
            (to, what) => unreachable!("{what:?} for {to:?}"),
        }
    }

    fn handle_world(&mut self, timer: WorldTimer) {
        match timer {
            WorldTimer::Fault(fault) => self.inject(*fault),
            WorldTimer::NextFault => self.next_fault(),
            WorldTimer::NextClient => self.next_client(),
            WorldTimer::ClientOver(call, tries) => self.client_over(call, tries),
            WorldTimer::Restart(host) => self.restart(host),
            WorldTimer::Mend => self.net.mend(),
            WorldTimer::Check => {
                self.check_in_full();
                self.after_any(Host::World, CHECK_US, What::World(WorldTimer::Check));
            }
        }
    }

    fn coord_hears(&mut self, c: usize, from: Host, msg: Msg) {
        match (from, msg) {
            (Host::Coord(other), Msg::Raft(msg)) => self.handle_raft(c, other, msg),
            (Host::Coord(other), Msg::Relay { call, tries, envelope }) => {
                self.handle_relay(c, other, call, tries, envelope);
            }
            (_, Msg::Relayed { call, tries, answer }) => self.call_answered(c, call, tries, answer),
            (Host::Coord(other), Msg::Beats(beats)) => self.receive_beats(c, other, beats),
            (_, Msg::Grants(grants)) => self.pass_grants(c, grants),
            (Host::Agent(a), Msg::Up(number, msg)) => self.coord_hears_agent(c, a, number, msg),
            (_, Msg::Closed(number)) => self.coords[c].sessions.retain(|_, session| session.number != number),
            (_, Msg::Hedge(beat)) => self.relay_beat(c, beat),
            (Host::Agent(a), Msg::Open { save, tries, node, registration, attempt, step }) => {
                self.handle_open(c, a, (save, tries), (node, registration), (attempt, step));
            }
            (_, Msg::Ask { call, tries, envelope }) => self.handle_ask(c, call, tries, envelope),
            (from, msg) => unreachable!("{msg:?} from {from:?} for a coordinator"),
        }
    }

    fn coord_hears_agent(&mut self, c: usize, a: usize, number: u64, msg: UpMsg) {
        match msg {
            UpMsg::Hello(hello) => self.register_agent(c, a, number, *hello),
            UpMsg::Heartbeat(heartbeat) => {
                let Some(session) =
                    self.coords[c].sessions.get(&a).filter(|session| session.number == number)
                else {
                    return;
                };
                let node = self.agents[a].node.clone();
                let registration = session.registration();
                let gone = self.decided_receipts(c, &heartbeat);
                let route = Route::Session(number);
                self.relay_beat(c, Beat { agent: a, node, registration, heartbeat, route });
                self.send_updates(c, a, number, &gone);
            }
            UpMsg::Observations { first, observations } => {
                if self.coords[c].sessions.get(&a).is_some_and(|session| session.number == number) {
                    self.handle_observations(c, a, first, observations);
                }
            }
        }
    }

    fn agent_hears(&mut self, a: usize, from: Host, msg: Msg) {
        match (from, msg) {
            (_, Msg::Down(number, msg)) => self.agent_hears_coord(a, number, msg),
            (_, Msg::Closed(number)) => self.handle_closed(a, number),
            (_, Msg::Grants(grants)) => grants.iter().for_each(|grant| self.handle_grant(a, grant, false)),
            (_, Msg::OpenAnswer { save, tries, opened }) => self.save_opened(a, save, tries, opened),
            (Host::Agent(other), Msg::Put { save, tries, shard, root }) => {
                self.handle_put(a, other, (save, tries), shard, root);
            }
            (_, Msg::PutAnswer { save, tries, holder }) => self.copy_answered(a, save, tries, holder),
            (Host::Agent(other), Msg::Get { fetch, tries, shard, root }) => {
                self.handle_get(a, other, (fetch, tries), shard, root);
            }
            (_, Msg::GetAnswer { fetch, tries, bytes }) => self.fetch_answered(a, fetch, tries, bytes),
            (from, msg) => unreachable!("{msg:?} from {from:?} for an agent"),
        }
        self.agent_pass(a);
    }

    fn agent_hears_coord(&mut self, a: usize, number: u64, msg: DownMsg) {
        if self.agents[a].link.as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        match msg {
            DownMsg::Welcome { index } => self.handle_welcome(a, number, index),
            DownMsg::Desired(desired) => self.handle_desired(a, desired),
            DownMsg::Lease(grant) => self.handle_grant(a, &grant, true),
            DownMsg::Observed(newest) => self.handle_observed(a, newest),
            DownMsg::Updates(updates) => self.handle_updates(a, updates),
            DownMsg::Refused { registration, register_anew, last } => {
                self.handle_refused(a, registration, register_anew, last);
            }
        }
    }

    /// A call or its answer: lost, late, doubled.
    pub(crate) fn send(&mut self, from: Host, to: Host, msg: Msg) {
        let (first, second) = self.net.arrivals(&mut self.rng, from, to);
        // Answers find the process that asked; who is asked may have been started anew meanwhile.
        if let Some(late) = second {
            self.cover.doubled += 1;
            self.after_any(to, late, What::Msg(from, msg.clone()));
        }
        match first {
            Some(late) => self.after_any(to, late, What::Msg(from, msg)),
            None => self.cover.lost_messages += 1,
        }
    }

    pub(crate) fn agent_named(&self, node: &NodeId) -> usize {
        self.agents.iter().position(|agent| agent.node == *node).expect("a node of this world")
    }

    pub(crate) fn note_root(&mut self, root: Digest, step: u64) {
        self.roots.insert(root, step);
    }

    pub(crate) fn step_of(&self, root: Digest) -> u64 {
        self.roots.get(&root).copied().unwrap_or(0)
    }

    pub(crate) fn join_gang(&mut self, key: WorkerKey, step: u64) {
        self.gangs.entry(key.attempt).or_default().steps.insert(key.rank, step);
    }

    /// Whether all ranks have come as far.
    pub(crate) fn gang_is_at(&self, key: WorkerKey, step: u64, world_size: u32) -> bool {
        let Some(gang) = self.gangs.get(&key.attempt) else { return false };
        gang.steps.len() as u32 == world_size && gang.steps.values().all(|at| *at >= step)
    }

    /// The step that the ranks have agreed to save at, where they were asked to.
    pub(crate) fn gang_saves_at(&mut self, key: WorkerKey, step: u64, asked: bool) -> Option<u64> {
        let gang = self.gangs.entry(key.attempt).or_default();
        if asked && gang.save_at.is_none() {
            gang.save_at = Some(gang.steps.values().copied().max().unwrap_or(step) + 1);
        }
        gang.save_at
    }

    pub(crate) fn forget_gangs(&mut self, over: impl Fn(&AttemptId) -> bool) {
        self.gangs.retain(|attempt, _| !over(attempt));
    }

    pub(crate) fn ask(
        &mut self,
        c: usize,
        call: u64,
        tries: u32,
        envelope: Rc<outlast_control::state::Envelope>,
    ) {
        self.send(Host::World, Host::Coord(c), Msg::Ask { call, tries, envelope });
    }

    /// Numbers of the processes that run, for the observers.
    pub(crate) fn live_workers(&self) -> BTreeSet<(usize, WorkerKey)> {
        let of = |(a, agent): (usize, &Agent)| {
            agent.procs.values().filter(|proc| proc.alive).map(move |proc| (a, proc.key)).collect::<Vec<_>>()
        };
        self.agents.iter().enumerate().flat_map(of).collect()
    }
}

/// Between two full checks of everything.
const CHECK_US: u64 = 5_000_000;

/// What happens so often that a trace would be nothing else.
fn is_routine(what: &What) -> bool {
    use {AgentTimer as Agent, CoordTimer as Coord};
    matches!(
        what,
        What::Coord(Coord::Beat(_) | Coord::Lease | Coord::Pass(_) | Coord::Election(_))
            | What::Coord(Coord::Look | Coord::Flush | Coord::RoundOver(_))
            | What::Agent(Agent::Tick | Agent::Step(_))
            | What::Msg(_, Msg::Raft(_) | Msg::Beats(_) | Msg::Grants(_) | Msg::Up(_, UpMsg::Heartbeat(_)))
            | What::Msg(_, Msg::Down(_, DownMsg::Lease(_)))
    )
}
