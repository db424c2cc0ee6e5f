//! Faults are over: everything is switched on, and then everything has to come to a good end in bounded time (43 to 51).

use outlast_control::state::NodeCondition;

use crate::event::Host;
use crate::world::World;

/// Longer than the longest wait of the planner: a back-off of a minute, after a release that was waited for.
const HEAL_US: u64 = 300_000_000;
/// A leader is there (43): an election, after the longest pause that had begun before.
const LEADER_US: u64 = 16_000_000;
const LOOK_US: u64 = 500_000;
/// Nothing changes any more for so long.
const CALM_US: u64 = 6_000_000;

impl World {
    /// The run's whole life: trouble, then healing.
    pub(crate) fn live(&mut self) {
        let chaos_us = self.scenario.chaos_us;
        while self.now < chaos_us {
            if !self.step() {
                return;
            }
        }
        self.end_faults();
        self.heal();
        if self.broken.is_none() {
            self.check_in_full();
            self.inv_13_a_replay_is_the_same_state();
        }
    }

    fn end_faults(&mut self) {
        self.trace(|| "FAULTS ARE OVER".to_owned());
        self.healing = true;
        self.net = crate::net::Net::default();
        for c in 0..self.coords.len() {
            let coord = &mut self.coords[c];
            coord.apply_lag_us = 0;
            coord.sync_max_us = 4_000;
            coord.clock.set_wall(0);
            self.restart(Host::Coord(c));
        }
        for a in 0..self.agents.len() {
            let agent = &mut self.agents[a];
            agent.disk_full = false;
            self.restart(Host::Agent(a));
        }
    }

    fn heal(&mut self) {
        let began = self.now;
        let mut cleared_at = began;
        self.clear_the_way();
        let mut next_look = self.now + LOOK_US;
        let mut calm_since = None;
        while self.now < began + HEAL_US {
            if !self.step() {
                return;
            }
            if self.now < next_look {
                continue;
            }
            next_look = self.now + LOOK_US;
            if self.now - cleared_at > 10_000_000 {
                // A policy may have set nodes apart meanwhile; what was submitted late may run for ever.
                cleared_at = self.now;
                self.clear_the_way();
            }
            match self.what_is_unwell() {
                Some((invariant @ "43 a leader within its bound", why)) if self.now > began + LEADER_US => {
                    return self.fail(invariant, why);
                }
                Some(_) => calm_since = None,
                None if self.now - *calm_since.get_or_insert(self.now) >= CALM_US => return,
                None => {}
            }
        }
        if let Some((invariant, why)) = self.what_is_unwell() {
            self.fail(invariant, why);
        }
    }

    /// The first thing that is not as it should be at last.
    fn what_is_unwell(&self) -> Option<(&'static str, String)> {
        let rules = [
            ("43 a leader within its bound", self.no_leader()),
            ("48 who lags catches up", self.laggard()),
            ("44 every node is back", self.node_away()),
            ("44, 45, 46 every job comes to its end", self.job_that_hangs()),
            ("49 queues drain", self.queue_that_is_full()),
            ("50 repair restores the copies", self.checkpoint_that_is_thin()),
            ("51 nothing is left over", self.leftover()),
        ];
        rules.into_iter().find_map(|(rule, why)| Some((rule, why?)))
    }

    fn no_leader(&self) -> Option<String> {
        let leads = |coord: &crate::coord::Coord| {
            coord
                .office
                .as_ref()
                .is_some_and(|office| Some(office.incarnation) == self.checks.state.incarnation)
        };
        (!self.coords.iter().any(leads)).then(|| "nobody is in office".to_owned())
    }

    fn laggard(&self) -> Option<String> {
        let late = self.coords.iter().find(|coord| coord.state.applied < self.checks.state.applied)?;
        Some(format!("{} is at {} of {}", late.id, late.state.applied, self.checks.state.applied))
    }

    fn node_away(&self) -> Option<String> {
        let away = |agent: &&crate::agent::Agent| {
            let known = self.checks.state.nodes.get(&agent.node);
            !known.is_some_and(|known| {
                known.condition == NodeCondition::Registered && known.registration == agent.registration
            }) || !agent.is_registered()
        };
        let agent = self.agents.iter().find(away)?;
        Some(format!("{} is not registered", agent.node))
    }

    fn job_that_hangs(&self) -> Option<String> {
        let job = self.checks.state.jobs.values().find(|job| !job.state.is_final())?;
        let newest = job.groups.iter().filter_map(|group| group.newest());
        let attempts: Vec<String> =
            newest.map(|attempt| format!("{} {:?}", attempt.id, attempt.phase)).collect();
        Some(format!("{} is {}: {}", job.id, job.state.as_str(), attempts.join(", ")))
    }

    fn queue_that_is_full(&self) -> Option<String> {
        if !self.clients.are_done() {
            return Some("a client waits for its answer".to_owned());
        }
        let full =
            |agent: &&crate::agent::Agent| !agent.observations.is_empty() || !agent.receipts.is_empty();
        let agent = self.agents.iter().find(full)?;
        Some(format!(
            "{} has {} observations and the receipts {:?}",
            agent.node,
            agent.observations.len(),
            agent.receipts.keys().collect::<Vec<_>>()
        ))
    }

    fn checkpoint_that_is_thin(&self) -> Option<String> {
        let state = &self.checks.state;
        if state.live_domains().len() < 2 {
            return None;
        }
        for checkpoint in
            state.jobs.values().flat_map(|job| job.checkpoints.values()).filter(|c| c.is_sealed())
        {
            let thin = checkpoint.shards.iter().find(|shard| {
                let readable = state.live_holders(&shard.holders).next().is_some();
                readable && state.live_domains_of(&shard.holders) < 2
            });
            if let Some(shard) = thin {
                let (seq, attempt, rank) = (checkpoint.seq, checkpoint.attempt, shard.rank);
                return Some(format!(
                    "rank {rank} of {seq} of {attempt} has the holders {:?}",
                    shard.holders
                ));
            }
        }
        None
    }

    fn leftover(&self) -> Option<String> {
        let state = &self.checks.state;
        for agent in &self.agents {
            if let Some(proc) = agent.procs.values().find(|proc| proc.alive) {
                return Some(format!("{:?} still runs on {}", proc.key, agent.node));
            }
            if let Some((key, _)) = agent.folder.workers.first_key_value() {
                return Some(format!("the folder of {key:?} is still on {}", agent.node));
            }
            if state.held_on(&agent.node).next().is_some() {
                return Some(format!("{} still gives something out", agent.node));
            }
        }
        None
    }
}
