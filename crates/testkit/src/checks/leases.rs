//! Leases and fences: invariants 23, 25, 26, 27, 29. Where machines stand still with their clocks, the leases' assumption is
//! broken, and only what needs no clock is checked.

use outlast_types::{BootTime, NodeId, Profile, RegistrationId, Timers};

use crate::assigned::{Assigned, WorkerKey};
use crate::event::LeaseGrant;
use crate::world::World;

impl World {
    /// The agent has extended its lease.
    pub(crate) fn check_grant(&mut self, a: usize, grant: &LeaseGrant, deadline: BootTime) {
        self.checks.deadlines.insert(a, (grant.registration, deadline));
        self.inv_25_no_lease_outlives_the_leaders_patience(a, grant.registration, deadline);
    }

    /// Against the leader that may act: its incarnation is the newest.
    fn inv_25_no_lease_outlives_the_leaders_patience(
        &mut self,
        a: usize,
        registration: RegistrationId,
        deadline: BootTime,
    ) {
        if !self.scenario.clocks_hold() {
            return;
        }
        let agent = &self.agents[a];
        let ends = agent.clock.when(deadline);
        for coord in self.coords.iter().filter(|coord| coord.up) {
            let Some(office) = &coord.office else { continue };
            if self.checks.state.incarnation != Some(office.incarnation) {
                continue;
            }
            let known = coord.state.nodes.get(&agent.node).map(|node| node.registration);
            let Some(expiry) = office.leases.expiry(&agent.node).filter(|_| known == Some(registration))
            else {
                continue;
            };
            let patience = coord.clock.when(expiry);
            if ends > patience + 2_000 {
                let why = format!("{} believes in {ends} us, {} in {patience} us", agent.node, coord.id);
                return self.fail("25 the agent's deadline is before the leader's expiry", why);
            }
        }
    }

    pub(super) fn inv_25_the_lease_of_a_lost_node_is_over(
        &mut self,
        node: &NodeId,
        registration: RegistrationId,
    ) {
        let a = self.agent_named(node);
        let Some((of, deadline)) = self.checks.deadlines.get(&a) else { return };
        let agent = &self.agents[a];
        if !self.scenario.clocks_hold()
            || *of != registration
            || agent.registration != registration
            || !agent.up
        {
            return;
        }
        let ends = agent.clock.when(*deadline);
        if ends > self.now {
            self.fail(
                "25 a lost node's lease is over",
                format!("{node} was lost {} us too soon", ends - self.now),
            );
        }
    }

    pub(super) fn inv_26_nobody_is_lost_within_the_grace(&mut self, node: &NodeId) {
        let grace_us = Timers::of(Profile::Lan).leader_lease_ms() * 1_000;
        // The leader's clock may run fast by what the profile allows.
        let least = grace_us - grace_us * 5 / 1_000;
        let since = self.now - self.checks.barrier_us;
        if since < least {
            self.fail("26 nobody is lost within the grace", format!("{node}, {since} us after the barrier"));
        }
    }

    /// A grant's heartbeats were received before the round that confirmed them began.
    pub(crate) fn check_round(&mut self, c: usize, received_us: u64, began_us: u64) {
        let is_leader = self.coords[c].raft.is_leader();
        if received_us > began_us || !is_leader {
            self.fail(
                "27 only confirmed heartbeats renew",
                format!("received at {received_us}, round from {began_us}"),
            );
        }
        // And somebody else may lead by now, but not since before the round: a quorum would have refused it.
        let newest = self.checks.state.incarnation;
        let own = self.coords[c].office.as_ref().map(|office| office.incarnation);
        if newest != own && self.checks.barrier_us < began_us {
            self.fail(
                "27 only confirmed heartbeats renew",
                format!("c{} was succeeded before its round began", c + 1),
            );
        }
    }

    pub(crate) fn check_started(&mut self, a: usize, key: WorkerKey, assigned: &Assigned) {
        if assigned.exclusive && self.scenario.clocks_hold() {
            self.inv_23_physical_exclusivity(a, key);
        }
    }

    fn inv_23_physical_exclusivity(&mut self, a: usize, key: WorkerKey) {
        let other = self
            .live_workers()
            .into_iter()
            .find(|(_, other)| other.attempt.group == key.attempt.group && other.attempt != key.attempt);
        if let Some((at, other)) = other {
            let why = format!("{key:?} runs on n{a} while {other:?} runs on n{at}");
            self.fail("23 physical exclusivity", why);
        }
    }

    /// `deadline`: of an exclusive worker.
    pub(crate) fn check_ended(
        &mut self,
        a: usize,
        key: WorkerKey,
        deadline: Option<BootTime>,
        now: BootTime,
    ) {
        if let Some(deadline) = deadline.filter(|deadline| now > *deadline && self.scenario.clocks_hold()) {
            let late = now.since(deadline);
            self.fail("29 self-fence", format!("{key:?} on n{a} outlived its lease by {late} ms"));
        }
    }

    /// An agent never goes back, over its own restarts too.
    pub(crate) fn check_desired_index(&mut self, a: usize, index: u64) {
        let acted = self.agents[a].folder.acted_index;
        if index < acted {
            self.fail("31 an agent never goes back", format!("n{a} follows index {index} after {acted}"));
        }
    }
}
