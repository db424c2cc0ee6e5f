//! The leader's side of the leases: memory of one incarnation, never log entries.

use std::collections::BTreeMap;

use outlast_types::{BootTime, Millis, NodeId, RegistrationId, Timers};

use crate::planted::planted;

/// A gap between two ticks above this is the leader's own stall (L3).
const STALL_MS: Millis = 500;
/// L5: fewer than this many late nodes are never the leader's fault.
const BRAKE_NODES_MIN: usize = 3;
const BRAKE_PERCENT: usize = 30;

/// A heartbeat as it reached the leader, directly or through a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReceipt {
    pub node: NodeId,
    pub registration: RegistrationId,
    pub seq: u64,
    /// The leader's boot clock when it had the heartbeat. The quorum round that confirms it began after this.
    pub received_at: BootTime,
}

/// Goes back to the agent: it extends its lease for the named heartbeat's send time (A9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub node: NodeId,
    pub registration: RegistrationId,
    pub ack_seq: u64,
}

/// How the leader itself is, by its own canaries (loop, quorum, disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderHealth {
    pub good: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseCondition {
    Ready,
    /// Silent for half a lease: nothing new is placed there.
    Suspect,
    /// Its lease ran out; it is refused, and `NodeLost` is on its way.
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    Suspect(NodeId),
    /// Was Suspect, and was heard again.
    Ready(NodeId),
    /// Propose `NodeLost`. Said once; the registration is never renewed again.
    Lost {
        node: NodeId,
        registration: RegistrationId,
    },
    /// L5: that many nodes are late at once while the leader is ill. They are held for one more grace.
    Braked {
        late: usize,
        of: usize,
        until: BootTime,
    },
    /// L3: the leader itself stood still; every lease was made longer by as much.
    Stalled {
        gap_ms: Millis,
    },
}

#[derive(Clone, Debug)]
struct Entry {
    registration: RegistrationId,
    expiry: BootTime,
    last_heard: BootTime,
    suspect: bool,
    refused: bool,
}

/// The leases that one incarnation of a leader knows.
#[derive(Clone, Debug)]
pub struct LeaderLeases {
    timers: Timers,
    incarnation: u64,
    nodes: BTreeMap<NodeId, Entry>,
    ticked_at: BootTime,
    grace_until: BootTime,
    /// The brake was used since the leader was last in good health: it holds once, not for ever.
    brake_used: bool,
}

impl LeaderLeases {
    /// L2: whoever the state knows as alive gets one full grace from here; nobody is lost before it is over.
    pub fn new(
        timers: Timers,
        incarnation: u64,
        now: BootTime,
        nodes: impl IntoIterator<Item = (NodeId, RegistrationId)>,
    ) -> Self {
        let grace_until = now.plus(if planted!(NoGrace) { 0 } else { timers.leader_lease_ms() });
        let entry = |registration| Entry {
            registration,
            expiry: grace_until,
            last_heard: now,
            suspect: false,
            refused: false,
        };
        Self {
            timers,
            incarnation,
            nodes: nodes.into_iter().map(|(node, registration)| (node, entry(registration))).collect(),
            ticked_at: now,
            grace_until,
            brake_used: false,
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Before this, nobody is declared lost (invariant 26).
    pub fn grace_until(&self) -> BootTime {
        self.grace_until
    }

    /// A registration was applied. The same one again changes nothing, so a repeat does not revive a refused one.
    pub fn register(&mut self, node: &NodeId, registration: RegistrationId, now: BootTime) {
        if self.nodes.get(node).is_some_and(|entry| entry.registration == registration) {
            return;
        }
        let expiry = now.plus(self.timers.leader_lease_ms()).max(self.grace_until);
        let entry = Entry { registration, expiry, last_heard: now, suspect: false, refused: false };
        self.nodes.insert(node.clone(), entry);
    }

    /// The state says that the node is Lost (or gone): there is no lease to keep.
    pub fn forget(&mut self, node: &NodeId, registration: RegistrationId) {
        if self.nodes.get(node).is_some_and(|entry| entry.registration == registration) {
            self.nodes.remove(node);
        }
    }

    /// L1: call only after a quorum round that began after the receipt of every heartbeat in the batch (invariant 27).
    /// Who is unknown, superseded or refused gets nothing.
    pub fn confirmed(&mut self, batch: &[HeartbeatReceipt]) -> Vec<Grant> {
        let mut grants: BTreeMap<&NodeId, Grant> = BTreeMap::new();
        for receipt in batch {
            let Some(entry) = self.nodes.get_mut(&receipt.node) else { continue };
            if entry.registration != receipt.registration || entry.refused {
                continue;
            }
            let patience_ms = if planted!(ShortPatience) { 3_000 } else { self.timers.leader_lease_ms() };
            entry.expiry = entry.expiry.max(receipt.received_at.plus(patience_ms));
            entry.last_heard = entry.last_heard.max(receipt.received_at);
            let grant = grants.entry(&receipt.node).or_insert_with(|| Grant {
                node: receipt.node.clone(),
                registration: receipt.registration,
                ack_seq: receipt.seq,
            });
            grant.ack_seq = grant.ack_seq.max(receipt.seq);
        }
        grants.into_values().collect()
    }

    /// Call at least every 100 ms or so; what takes longer than 500 ms counts as a stall of the leader's own.
    pub fn tick(&mut self, now: BootTime, health: LeaderHealth) -> Vec<LeaseEvent> {
        let mut events = Vec::new();
        self.guard_against_stall(now, &mut events);
        self.mark_suspects(now, &mut events);
        if health.good {
            self.brake_used = false;
        } else {
            self.brake(now, &mut events);
        }
        if now > self.grace_until {
            self.expire(now, &mut events);
        }
        events
    }

    /// L3: nobody was heard because nobody was listening.
    fn guard_against_stall(&mut self, now: BootTime, events: &mut Vec<LeaseEvent>) {
        let gap_ms = now.since(self.ticked_at);
        self.ticked_at = self.ticked_at.max(now);
        if gap_ms <= STALL_MS {
            return;
        }
        self.lengthen(gap_ms);
        events.push(LeaseEvent::Stalled { gap_ms });
    }

    /// In place of a tick while no quorum round succeeds: nobody can be renewed, so nobody's time runs. A loss could not
    /// be committed now either; left to run, the leases would end all at once when the other coordinators are back.
    pub fn hold(&mut self, now: BootTime) {
        let gap_ms = now.since(self.ticked_at);
        self.ticked_at = self.ticked_at.max(now);
        self.lengthen(gap_ms);
    }

    fn lengthen(&mut self, gap_ms: Millis) {
        for entry in self.nodes.values_mut().filter(|entry| !entry.refused) {
            entry.expiry = entry.expiry.plus(gap_ms);
            entry.last_heard = entry.last_heard.plus(gap_ms);
        }
        self.grace_until = self.grace_until.plus(gap_ms);
    }

    fn mark_suspects(&mut self, now: BootTime, events: &mut Vec<LeaseEvent>) {
        let silence_max = self.timers.lease_ms / 2;
        for (node, entry) in self.nodes.iter_mut().filter(|(_, entry)| !entry.refused) {
            let silent = now.since(entry.last_heard) > silence_max;
            match (entry.suspect, silent) {
                (false, true) => events.push(LeaseEvent::Suspect(node.clone())),
                (true, false) => events.push(LeaseEvent::Ready(node.clone())),
                _ => {}
            }
            entry.suspect = silent;
        }
    }

    /// L5: a Suspect node expires within one lease unless it is heard. When many are late at once and the leader is
    /// ill, the fault is the leader's: one more grace for all of them, once.
    fn brake(&mut self, now: BootTime, events: &mut Vec<LeaseEvent>) {
        let late = self.nodes.values().filter(|entry| !entry.refused && entry.suspect).count();
        let of = self.nodes.values().filter(|entry| !entry.refused).count();
        let due = self.nodes.values().any(|entry| !entry.refused && now > entry.expiry);
        if self.brake_used || !due || late < BRAKE_NODES_MIN || late * 100 <= of * BRAKE_PERCENT {
            return;
        }
        self.brake_used = true;
        let until = now.plus(self.timers.leader_lease_ms());
        for entry in self.nodes.values_mut().filter(|entry| !entry.refused && entry.suspect) {
            entry.expiry = entry.expiry.max(until);
        }
        events.push(LeaseEvent::Braked { late, of, until });
    }

    /// L4: refused first, said afterwards, so that no renewal can cross a `NodeLost`.
    fn expire(&mut self, now: BootTime, events: &mut Vec<LeaseEvent>) {
        for (node, entry) in self.nodes.iter_mut().filter(|(_, entry)| !entry.refused && now > entry.expiry) {
            entry.refused = true;
            events.push(LeaseEvent::Lost { node: node.clone(), registration: entry.registration });
        }
    }

    /// `None` for a node without a lease here.
    pub fn condition(&self, node: &NodeId) -> Option<LeaseCondition> {
        self.nodes.get(node).map(|entry| match (entry.refused, entry.suspect) {
            (true, _) => LeaseCondition::Expired,
            (false, true) => LeaseCondition::Suspect,
            (false, false) => LeaseCondition::Ready,
        })
    }

    /// Who must get no new work: Suspect or Expired.
    pub fn suspects(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter().filter(|(_, entry)| entry.suspect || entry.refused).map(|(node, _)| node)
    }

    /// Registrations whose lease ran out and that the state does not know as Lost yet: propose `NodeLost` again
    /// where the first proposal may have failed.
    pub fn expired(&self) -> impl Iterator<Item = (&NodeId, RegistrationId)> {
        self.nodes.iter().filter(|(_, entry)| entry.refused).map(|(node, entry)| (node, entry.registration))
    }

    pub fn last_heard(&self, node: &NodeId) -> Option<BootTime> {
        self.nodes.get(node).map(|entry| entry.last_heard)
    }

    pub fn expiry(&self, node: &NodeId) -> Option<BootTime> {
        self.nodes.get(node).map(|entry| entry.expiry)
    }
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
