//! The agent's side of the lease: beating, hedging, fencing (A1 to A9; `agent/src/agent_loop/lease.rs`).

use std::rc::Rc;

use crate::agent::Tracked;
use crate::assigned::WorkerKey;
use crate::event::{AgentTimer, Beat, Heartbeat, Host, LeaseGrant, Msg, Route, UpMsg, What};
use crate::model_bug::ModelBug;
use crate::upkeep::OrderState;
use crate::world::World;

const LAG_MAX_MS: u64 = 1_000;
const HEDGE_US: u64 = 1_600_000;

impl World {
    pub(crate) fn keep_lease(&mut self, a: usize) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now);
        if agent.heart.fence_due(now) {
            let exclusive = |tracked: &Tracked| tracked.assigned.as_ref().is_some_and(|of| of.exclusive);
            let due = agent
                .tracked
                .iter()
                .filter(|(_, tracked)| exclusive(tracked) && tracked.life.may_be_killed());
            for key in due.map(|(key, _)| *key).collect::<Vec<_>>() {
                self.stop_worker(a, key, 0);
                if let Some(tracked) = self.agents[a].tracked.get_mut(&key) {
                    tracked.is_fenced = true;
                }
            }
        }
        let agent = &mut self.agents[a];
        let alive = |tracked: &Tracked| {
            tracked.is_alive() && tracked.assigned.as_ref().is_some_and(|of| of.exclusive)
        };
        if agent.heart.expired(now) && !agent.heart.is_closed() && agent.tracked.values().any(alive) {
            agent.heart.close();
            self.cover.failed_fences += 1;
            self.leave(a);
        }
        let agent = &self.agents[a];
        if agent.heart.is_closed() && !agent.tracked.values().any(alive) {
            self.register_anew(a);
        }
    }

    pub(crate) fn leave_laggard(&mut self, a: usize) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now).0;
        let seen = agent.desired.as_ref().map_or(0, |desired| desired.index);
        if seen >= agent.heart.assignments_index() || agent.link.is_none() {
            agent.lags_since = None;
        } else if now.saturating_sub(*agent.lags_since.get_or_insert(now)) > LAG_MAX_MS {
            agent.lags_since = None;
            self.cover.laggards_left += 1;
            return self.leave(a);
        }
        let agent = &mut self.agents[a];
        if agent.link.is_some() && now.saturating_sub(agent.link_granted_ms) > agent.heart.timers().lease_ms {
            agent.link_granted_ms = now;
            self.leave(a);
        }
    }

    pub(crate) fn beat(&mut self, a: usize) {
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(self.now);
        let has_reason = agent.heart.is_due(now) || agent.has_news && agent.heart.may_send_extra(now);
        if !has_reason {
            return;
        }
        agent.has_news = false;
        let is_unanswered = agent.heart.is_unanswered(now);
        let seq = agent.heart.send(now);
        let heartbeat = Rc::new(self.heartbeat(a, seq));
        let link = self.agents[a].link.as_ref().filter(|link| link.welcomed).map(|link| link.number);
        if let Some(number) = link {
            self.stream_up(a, number, UpMsg::Heartbeat(heartbeat.clone()));
        }
        if (is_unanswered || link.is_none()) && !self.agents[a].is_hedging {
            self.hedge(a, heartbeat);
        }
    }

    fn heartbeat(&self, a: usize, seq: u64) -> Heartbeat {
        let agent = &self.agents[a];
        let step = |(key, tracked): (&WorkerKey, &Tracked)| {
            let proc = agent.procs.get(&tracked.proc?).filter(|proc| proc.reports)?;
            tracked.is_alive().then_some((key.attempt, key.rank, proc.step, tracked.save_cost))
        };
        let done = agent.orders.iter().filter(|(_, state)| matches!(state, OrderState::Done));
        Heartbeat {
            seq,
            progress: agent.tracked.iter().filter_map(step).collect(),
            receipts: agent.receipts.values().cloned().collect(),
            done: done.map(|(key, _)| *key).collect(),
            disk_full: agent.disk_full,
        }
    }

    /// A8: the next one goes to a second coordinator too.
    fn hedge(&mut self, a: usize, heartbeat: Rc<Heartbeat>) {
        self.cover.hedges += 1;
        let own = self.agents[a].link.as_ref().map(|link| link.coord);
        let mut others: Vec<usize> = (0..self.coords.len()).filter(|c| Some(*c) != own).collect();
        if others.is_empty() {
            others.push(0);
        }
        let c = others[self.rng.index(others.len())];
        let agent = &mut self.agents[a];
        agent.is_hedging = true;
        let beat = Beat {
            agent: a,
            node: agent.node.clone(),
            registration: agent.registration,
            heartbeat,
            route: Route::Hedge,
        };
        self.send(Host::Agent(a), Host::Coord(c), Msg::Hedge(beat));
        self.after(Host::Agent(a), HEDGE_US, What::Agent(AgentTimer::HedgeOver));
    }

    pub(crate) fn handle_grant(&mut self, a: usize, grant: &LeaseGrant, by_stream: bool) {
        let now_us = self.now;
        let from_answer = self.model_bug == Some(ModelBug::LeaseFromAnswer);
        let agent = &mut self.agents[a];
        let now = agent.clock.boot(now_us);
        if by_stream {
            agent.link_granted_ms = now.0;
        } else {
            agent.is_hedging = false;
        }
        if grant.registration != agent.registration || agent.heart.is_closed() {
            return;
        }
        let lease_ms = agent.heart.timers().lease_ms;
        let lease_ms = if from_answer { lease_ms + 2_000 } else { lease_ms };
        agent.heart.granted(grant.ack_seq, lease_ms, grant.incarnation, grant.assignments_index, now);
        let Some(deadline) = agent.heart.deadline() else { return };
        self.check_grant(a, grant, deadline);
        self.pass_deadline_on(a, deadline);
    }
}
