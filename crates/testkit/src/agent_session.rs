//! The agent's end of its stream: connecting, registering, and what coordinators say (`agent/src/session.rs`,
//! `agent/src/agent_loop/session.rs`).

use outlast_control::state::{CheckpointState, Observation};
use outlast_types::{Digest, Profile, RegistrationId};

use crate::agent::{Link, Tracked};
use crate::assigned::{Desired, ShardKey, WorkerKey};
use crate::event::{AgentTimer, Hello, Host, UpMsg, Update, What, WorldTimer};
use crate::heart::Heart;
use crate::model_bug::ModelBug;
use crate::world::World;

pub(crate) const BACKOFF_US: (u64, u64) = (50_000, 1_000_000);
const WELCOME_US: u64 = 2_000_000;

impl World {
    pub(crate) fn handle_observed(&mut self, a: usize, number: u64) {
        let applied = self.agents[a].observed(number);
        for observation in applied {
            if let Observation::Released { attempt, rank } = observation {
                self.release_applied(a, WorkerKey { attempt, rank });
            }
        }
        self.agents[a].observations_sent_ms = None;
    }

    /// An agent never goes back.
    pub(crate) fn handle_desired(&mut self, a: usize, desired: Desired) {
        let goes_back = self.model_bug == Some(ModelBug::AgentGoesBack);
        let agent = &mut self.agents[a];
        let newest = agent.desired.as_ref().map_or(0, |desired| desired.index);
        let least = newest.max(agent.folder.acted_index).max(agent.registered_at.unwrap_or(u64::MAX));
        if desired.index < least && !goes_back {
            self.cover.old_desired_ignored += 1;
            return;
        }
        desired.workers.iter().for_each(|worker| agent.newest.saw(worker.key.attempt));
        self.check_desired_index(a, desired.index);
        self.agents[a].desired = Some(desired);
    }

    /// A new registration: what runs is declared for adoption, what was being started is given up.
    pub(crate) fn register_anew(&mut self, a: usize) {
        self.cover.registered_anew += 1;
        let registration = RegistrationId(self.rng.next() | 1);
        let agent = &mut self.agents[a];
        agent.registration = registration;
        agent.folder.registrations += 1;
        agent.registered_at = None;
        agent.message = None;
        agent.heart = Heart::new(Profile::Lan);
        agent.desired = None;
        agent.lags_since = None;
        agent.first_observation = 1;
        let unsettled =
            agent.tracked.iter().filter(|(_, tracked)| tracked.is_unsettled()).map(|(key, _)| *key);
        let unsettled: Vec<WorkerKey> = unsettled.collect();
        self.leave(a);
        unsettled.into_iter().for_each(|key| self.stop_worker(a, key, 0));
    }

    pub(crate) fn leave(&mut self, a: usize) {
        if let Some(link) = self.agents[a].link.take() {
            self.reset_stream(link.number, Host::Agent(a));
            self.connect_later(a, link.welcomed);
        }
    }

    fn connect_later(&mut self, a: usize, was_welcomed: bool) {
        let agent = &mut self.agents[a];
        if was_welcomed {
            agent.backoff_us = BACKOFF_US.0;
        }
        let pause = agent.backoff_us / 2 + self.rng.below(agent.backoff_us / 2 + 1);
        agent.backoff_us = (agent.backoff_us * 2).min(BACKOFF_US.1);
        self.after(Host::Agent(a), pause, What::Agent(AgentTimer::Connect));
    }

    pub(crate) fn connect(&mut self, a: usize) {
        if self.agents[a].link.is_some() {
            return;
        }
        let Some(hello) = self.hello(a) else { return self.connect_later(a, false) };
        let c = self.rng.index(self.coords.len());
        let number = self.open_stream(a, c);
        let registration = hello.registration.registration;
        self.agents[a].link = Some(Link { coord: c, number, registration, welcomed: false });
        self.stream_up(a, number, UpMsg::Hello(Box::new(hello)));
        self.after(Host::Agent(a), WELCOME_US, What::Agent(AgentTimer::WelcomeOver(number)));
    }

    /// `None`: not now. A failed fence has to be over first, and of every worker it must be known whether it runs.
    fn hello(&mut self, a: usize) -> Option<Hello> {
        if self.agents[a].heart.is_closed() {
            return None;
        }
        if self.agents[a].message.is_none() {
            if self.agents[a].tracked.values().any(Tracked::is_unsettled) {
                return None;
            }
            let message = self.registration_message(a);
            self.agents[a].message = Some(message);
        }
        let agent = &self.agents[a];
        let registration = agent.message.as_ref()?.0.clone();
        let mut held: Vec<_> = agent.folder.shards.keys().map(|key| (key.job(), key.seq)).collect();
        held.dedup();
        let forgets = self.model_bug == Some(ModelBug::AgentGoesBack);
        let desired_index = if forgets { 0 } else { agent.folder.acted_index };
        Some(Hello { registration, desired_index, held })
    }

    pub(crate) fn handle_welcome(&mut self, a: usize, number: u64, index: u64) {
        let now = self.now;
        let agent = &mut self.agents[a];
        let Some(link) = agent.link.as_mut().filter(|link| link.number == number) else { return };
        if link.registration != agent.registration {
            return self.leave(a);
        }
        link.welcomed = true;
        if agent.registered_at.is_none() {
            agent.registered_at = Some(index);
            agent.awaits_first_state = true;
            agent.heart = Heart::new(Profile::Lan);
            let over = agent.message.as_ref().map(|(_, over)| over.clone()).unwrap_or_default();
            over.into_iter().for_each(|key| self.release_applied(a, key));
            self.cover.registrations += 1;
        }
        let agent = &mut self.agents[a];
        agent.link_granted_ms = agent.clock.boot(now).0;
        agent.observations_sent_ms = None;
        agent.has_news = true;
        agent.backoff_us = BACKOFF_US.0;
    }

    pub(crate) fn handle_refused(
        &mut self,
        a: usize,
        registration: RegistrationId,
        register_anew: bool,
        last: bool,
    ) {
        if registration != self.agents[a].registration {
            return;
        }
        if register_anew {
            self.register_anew(a);
        } else if last {
            self.cover.agents_refused += 1;
            // A service manager starts it again.
            self.crash_agent(a);
            let pause = self.rng.within(1_000_000, 3_000_000);
            self.after_any(Host::World, pause, What::World(WorldTimer::Restart(Host::Agent(a))));
        }
    }

    pub(crate) fn handle_closed(&mut self, a: usize, number: u64) {
        let agent = &mut self.agents[a];
        if agent.link.as_ref().is_some_and(|link| link.number == number) {
            let welcomed = agent.link.take().is_some_and(|link| link.welcomed);
            self.connect_later(a, welcomed);
        }
    }

    pub(crate) fn handle_updates(&mut self, a: usize, updates: Vec<Update>) {
        for update in updates {
            let key = (update.job, update.seq);
            let fate = match update.state {
                Some(CheckpointState::Sealed) => Some(true),
                Some(CheckpointState::Aborted | CheckpointState::Quarantined | CheckpointState::Retired) => {
                    Some(false)
                }
                Some(CheckpointState::Open) => None,
                None => self.agents[a]
                    .receipts
                    .keys()
                    .any(|shard| (shard.job(), shard.seq) == key)
                    .then_some(false),
            };
            let agent = &mut self.agents[a];
            if let Some(sealed) = fate {
                agent.receipts.retain(|shard, _| (shard.job(), shard.seq) != key);
                agent.fates.insert(key, sealed);
            }
            self.follow_fate(a, &update);
        }
    }

    /// The root that this node should have of a shard, by its own disk.
    pub(crate) fn has_good(&self, a: usize, key: &ShardKey, root: Digest) -> bool {
        self.agents[a].folder.shards.get(key).is_some_and(|stored| stored.root == root && !stored.corrupt)
    }
}
