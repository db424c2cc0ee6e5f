//! A change on its way into the log: proposed here or passed on to the leader, tried again until its deadline. Everything
//! that takes this way is idempotent (`coordinator/src/propose.rs`).

use std::rc::Rc;

use outlast_control::state::{Command, Envelope, NodeCondition, Refusal, Response};
use outlast_types::{Actor, AttemptId, NodeId, RegistrationId};

use crate::coord::ReplyTo;
use crate::event::{Adopted, Answer, CoordTimer, Hello, Host, Msg, Opened, What};
use crate::world::World;

const TRY_US: u64 = 2_000_000;
const PAUSE_US: u64 = 50_000;
const WELCOME_US: u64 = 5_000_000;
const OBSERVE_US: u64 = 5_000_000;
const WRITE_US: u64 = 10_000_000;

pub(crate) enum Purpose {
    Register { agent: usize, number: u64, hello: Box<Hello> },
    Observe { agent: usize, number: u64 },
    Open { agent: usize, save: u64, tries: u32 },
    Client { call: u64, tries: u32 },
}

pub(crate) struct Call {
    envelope: Rc<Envelope>,
    tries: u32,
    /// Answered; waits until the own state has it.
    decided: Option<(u64, Response)>,
    wait_for: u64,
    purpose: Purpose,
}

impl World {
    fn begin_call(&mut self, c: usize, envelope: Rc<Envelope>, within: u64, wait_for: u64, purpose: Purpose) {
        let id = self.id();
        let call = Call { envelope, tries: 0, decided: None, wait_for, purpose };
        self.coords[c].calls.insert(id, call);
        self.after(Host::Coord(c), within, What::Coord(CoordTimer::CallOver(id)));
        self.try_call(c, id);
    }

    pub(crate) fn register_agent(&mut self, c: usize, agent: usize, number: u64, hello: Hello) {
        let actor = Actor::Agent(hello.registration.node.clone());
        let command = Command::RegisterNode(Box::new(hello.registration.clone()));
        let envelope = Rc::new(Envelope { actor, ..self.system(c, command) });
        let wait_for = hello.desired_index;
        let purpose = Purpose::Register { agent, number, hello: Box::new(hello) };
        self.begin_call(c, envelope, WELCOME_US, wait_for, purpose);
    }

    pub(crate) fn propose_observations(&mut self, c: usize, agent: usize, number: u64, command: Command) {
        let actor = Actor::Agent(self.agents[agent].node.clone());
        let envelope = Rc::new(Envelope { actor, ..self.system(c, command) });
        self.begin_call(c, envelope, OBSERVE_US, 0, Purpose::Observe { agent, number });
    }

    pub(crate) fn handle_open(
        &mut self,
        c: usize,
        agent: usize,
        (save, tries): (u64, u32),
        (node, registration): (NodeId, RegistrationId),
        (attempt, step): (AttemptId, u64),
    ) {
        let known = self.coords[c].state.nodes.get(&node);
        if known.is_none_or(|known| known.registration != registration) {
            let answer = Msg::OpenAnswer { save, tries, opened: Opened::Fenced };
            return self.send(Host::Coord(c), Host::Agent(agent), answer);
        }
        let command = Command::OpenCheckpoint { attempt, step, in_turn: false };
        let envelope = Rc::new(Envelope { actor: Actor::Agent(node), ..self.system(c, command) });
        self.begin_call(c, envelope, WRITE_US, 0, Purpose::Open { agent, save, tries });
    }

    pub(crate) fn handle_ask(&mut self, c: usize, call: u64, tries: u32, envelope: Rc<Envelope>) {
        let at = self.coords[c].clock.wall(self.now);
        let envelope = Rc::new(Envelope { at, ..(*envelope).clone() });
        self.begin_call(c, envelope, WRITE_US, 0, Purpose::Client { call, tries });
    }

    pub(crate) fn try_call(&mut self, c: usize, id: u64) {
        let leads = self.coords[c].raft.is_leader();
        let leader = self.leader_of(c);
        let Some(call) = self.coords[c].calls.get_mut(&id).filter(|call| call.decided.is_none()) else {
            return;
        };
        call.tries += 1;
        let (tries, envelope) = (call.tries, call.envelope.clone());
        if leads {
            self.propose(c, (*envelope).clone(), ReplyTo::Own { call: id, tries });
        } else if let Some(leader) = leader {
            self.send(Host::Coord(c), Host::Coord(leader), Msg::Relay { call: id, tries, envelope });
        } else {
            return self.after(Host::Coord(c), PAUSE_US, What::Coord(CoordTimer::Try(id)));
        }
        self.after(Host::Coord(c), TRY_US, What::Coord(CoordTimer::TryOver(id, tries)));
    }

    pub(crate) fn handle_relay(
        &mut self,
        c: usize,
        from: usize,
        call: u64,
        tries: u32,
        envelope: Rc<Envelope>,
    ) {
        self.propose(c, (*envelope).clone(), ReplyTo::Other { coord: from, call, tries });
    }

    pub(crate) fn try_over(&mut self, c: usize, id: u64, tries: u32) {
        if self.coords[c].calls.get(&id).is_some_and(|call| call.tries == tries && call.decided.is_none()) {
            self.try_call(c, id);
        }
    }

    pub(crate) fn call_answered(&mut self, c: usize, id: u64, tries: u32, answer: Answer) {
        let Some(call) = self.coords[c].calls.get_mut(&id).filter(|call| call.decided.is_none()) else {
            return;
        };
        let Some((index, response)) = answer else {
            if call.tries == tries {
                self.after(Host::Coord(c), PAUSE_US, What::Coord(CoordTimer::Try(id)));
            }
            return;
        };
        // A registration waits for its own entry and for what its agent has acted on; what was observed waits for nothing;
        // why something was refused is in the state that refused it.
        let needed = match (&call.purpose, &response) {
            (Purpose::Register { .. }, Response::Registered { index }) => *index,
            (Purpose::Observe { .. }, Response::Observed(_)) => 0,
            _ => index,
        };
        call.wait_for = call.wait_for.max(needed);
        call.decided = Some((index, response));
        if self.coords[c].state.applied >= self.coords[c].calls[&id].wait_for {
            self.finish_call(c, id);
        }
    }

    pub(crate) fn finish_waiting_calls(&mut self, c: usize) {
        if self.coords[c].calls.is_empty() {
            return;
        }
        let applied = self.coords[c].state.applied;
        let calls = self.coords[c].calls.iter();
        let ready = calls.filter(|(_, call)| call.decided.is_some() && call.wait_for <= applied);
        for id in ready.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.finish_call(c, id);
        }
    }

    fn finish_call(&mut self, c: usize, id: u64) {
        let Some(call) = self.coords[c].calls.remove(&id) else { return };
        let Some((index, response)) = call.decided else { return };
        self.deliver_decision(c, call.purpose, Some((index, response)));
    }

    /// Its time is over: whether it took effect is not known.
    pub(crate) fn call_over(&mut self, c: usize, id: u64) {
        let Some(call) = self.coords[c].calls.remove(&id) else { return };
        // The change is made: a slow follower shows an older state, but does not call it failed.
        let answer =
            call.decided.filter(|_| matches!(call.purpose, Purpose::Client { .. } | Purpose::Open { .. }));
        self.deliver_decision(c, call.purpose, answer);
    }

    fn deliver_decision(&mut self, c: usize, purpose: Purpose, answer: Answer) {
        match purpose {
            Purpose::Client { call, tries } => {
                self.send(Host::Coord(c), Host::World, Msg::Asked { call, tries, answer });
            }
            Purpose::Open { agent, save, tries } => {
                let opened = match answer {
                    None => Opened::Unavailable,
                    Some((_, Response::CheckpointOpened(seq))) => Opened::Yes(seq),
                    Some((_, Response::CheckpointSkipped { .. })) => Opened::Skipped,
                    Some((_, Response::Refused(Refusal::Fenced { .. }))) => Opened::Fenced,
                    Some(_) => Opened::Refused,
                };
                self.send(Host::Coord(c), Host::Agent(agent), Msg::OpenAnswer { save, tries, opened });
            }
            Purpose::Observe { agent, number } => self.observations_decided(c, agent, number, answer),
            Purpose::Register { agent, number, hello } => {
                self.registration_decided(c, agent, number, *hello, answer)
            }
        }
    }

    fn registration_decided(&mut self, c: usize, agent: usize, number: u64, hello: Hello, answer: Answer) {
        let Some((_, response)) = answer else { return self.close_stream(c, number) };
        let (node, registration) = (hello.registration.node.clone(), hello.registration.registration);
        match response {
            Response::Registered { index } => {
                let adopted: Adopted = hello.registration.adopted;
                self.welcome(c, agent, number, registration, index, adopted, &hello.held);
            }
            Response::Refused(Refusal::Exhausted { .. }) => {
                self.refuse(c, number, registration, false, false);
            }
            _ => {
                let known = self.coords[c].state.nodes.get(&node);
                let lost = known.is_some_and(|known| {
                    known.registration == registration && known.condition == NodeCondition::Lost
                });
                self.refuse(c, number, registration, lost, !lost);
            }
        }
    }
}
