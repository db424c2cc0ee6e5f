//! People and programs at the control API: they submit, cancel, drain; a call that is not answered is repeated with its
//! request id, at another coordinator.

use std::collections::BTreeMap;
use std::rc::Rc;

use outlast_control::state::{Command, Envelope, Response};
use outlast_types::{Actor, JobId, JobKind, RequestId, WallTime};

use crate::event::{Answer, Host, What, WorldTimer};
use crate::world::World;

const OVER_US: (u64, u64) = (500_000, 4_000_000);
const TRIES_MAX: u32 = 40;
const NEXT_US: (u64, u64) = (300_000, 6_000_000);

struct Open {
    envelope: Rc<Envelope>,
    tries: u32,
}

#[derive(Default)]
pub(crate) struct Clients {
    open: BTreeMap<u64, Open>,
    submitted: u64,
    requests: u64,
    /// Jobs that somebody was told of.
    known: Vec<JobId>,
}

impl Clients {
    pub(crate) fn are_done(&self) -> bool {
        self.open.is_empty()
    }
}

impl World {
    pub(crate) fn next_client(&mut self) {
        if self.healing {
            return;
        }
        let submits = self.clients.submitted < self.scenario.jobs;
        match self.rng.below(12) {
            0..=6 if submits => self.submit(),
            7 | 8 => self.cancel_some(),
            9 => self.drain_some(),
            10 | 11 => self.uncordon_some(),
            _ => {}
        }
        let pause = self.rng.within(NEXT_US.0, NEXT_US.1);
        self.after_any(Host::World, pause, What::World(WorldTimer::NextClient));
    }

    fn submit(&mut self) {
        self.clients.submitted += 1;
        let number = self.clients.submitted;
        let spec = self.scenario.clone().job(&mut self.rng, number);
        self.call(Command::SubmitJob { spec: Box::new(spec), bundle: None });
    }

    fn cancel_some(&mut self) {
        if !self.clients.known.is_empty() && self.rng.per_mille(400) {
            let job = self.clients.known[self.rng.index(self.clients.known.len())];
            self.cover.cancels += 1;
            self.call(Command::CancelJob { job, reason: None });
        }
    }

    fn drain_some(&mut self) {
        let node = self.agents[self.rng.index(self.agents.len())].node.clone();
        self.cover.drains += 1;
        let drains = self.rng.per_mille(700);
        self.call(if drains { Command::DrainNode { node } } else { Command::CordonNode { node } });
    }

    fn uncordon_some(&mut self) {
        let node = self.agents[self.rng.index(self.agents.len())].node.clone();
        self.call(Command::UncordonNode { node });
    }

    /// After the faults: every node takes work again, and what would run for ever is cancelled.
    pub(crate) fn clear_the_way(&mut self) {
        for a in 0..self.agents.len() {
            let node = self.agents[a].node.clone();
            if self.checks.state.nodes.contains_key(&node) {
                self.call(Command::UncordonNode { node });
            }
        }
        let endless = self
            .checks
            .state
            .jobs
            .values()
            .filter(|job| job.spec.kind == JobKind::Service && !job.is_ending());
        for job in endless.map(|job| job.id).collect::<Vec<_>>() {
            self.call(Command::CancelJob { job, reason: None });
        }
    }

    fn call(&mut self, command: Command) {
        self.clients.requests += 1;
        let request = RequestId::new(format!("q{}", self.clients.requests)).expect("a valid name");
        let envelope = Rc::new(Envelope {
            request: Some(request),
            actor: Actor::Operator("sim".to_owned()),
            source: None,
            cause: None,
            at: WallTime(0),
            command,
        });
        let id = self.id();
        self.clients.open.insert(id, Open { envelope, tries: 0 });
        self.try_client(id);
    }

    fn try_client(&mut self, id: u64) {
        let c = self.rng.index(self.coords.len());
        let wait = self.rng.within(OVER_US.0, OVER_US.1);
        let Some(open) = self.clients.open.get_mut(&id) else { return };
        open.tries += 1;
        let (tries, envelope) = (open.tries, open.envelope.clone());
        if tries > TRIES_MAX && !self.healing {
            self.clients.open.remove(&id);
            return;
        }
        self.ask(c, id, tries, envelope);
        self.after_any(Host::World, wait, What::World(WorldTimer::ClientOver(id, tries)));
    }

    pub(crate) fn client_over(&mut self, id: u64, tries: u32) {
        if self.clients.open.get(&id).is_some_and(|open| open.tries == tries) {
            self.cover.unknown_answers += 1;
            self.try_client(id);
        }
    }

    pub(crate) fn client_answered(&mut self, id: u64, _: u32, answer: Answer) {
        let Some((_, response)) = answer else { return };
        let Some(open) = self.clients.open.remove(&id) else { return };
        if let Response::JobSubmitted(job) = response {
            self.clients.known.push(job);
        }
        self.check_answer(&open.envelope, &response);
    }
}
