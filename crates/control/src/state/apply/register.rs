//! `RegisterNode`: an agent's new run takes its node over. In this one entry every worker of the node is bound to the
//! new registration or accounted for as gone (invariant 30).

use outlast_types::{AttemptId, Cause, NodeId};

use super::coordinators::too_old;
use super::{Context, Handled, conflict, exhausted, fenced};
use crate::planted::planted;
use crate::state::{
    AssignmentPhase, AttemptPhase, ClusterState, Event, Limits, Node, NodeCondition, Refusal, Registration,
    Response,
};

impl ClusterState {
    pub(super) fn register_node(&mut self, cx: &mut Context<'_>, new: &Registration) -> Handled {
        if new.feature_level < self.feature_level {
            return Err(too_old("agent", new.feature_level, self.feature_level));
        }
        let known = self.nodes.get(&new.node);
        match known {
            Some(old)
                if old.registration == new.registration && old.condition == NodeCondition::Registered =>
            {
                return Ok(Response::Registered { index: old.registered_index });
            }
            Some(old) => check_succession(old, new)?,
            None if self.nodes.len() >= Limits::NODES_MAX => {
                return Err(exhausted(format!(
                    "the cluster has {} nodes, which is its bound",
                    Limits::NODES_MAX
                )));
            }
            None => {}
        }
        let previous = known.map(|old| (old.registration, old.disk != new.disk));
        let record = node_record(cx, known, new);
        self.nodes.insert(new.node.clone(), record);
        cx.tell(Event::NodeRegistered { node: new.node.clone() });
        if let Some((registration, disk_changed)) = previous {
            if disk_changed {
                self.drop_holders(&new.node);
            }
            self.take_lost_back(new, registration);
            self.bind_workers(cx, new);
        }
        Ok(Response::Registered { index: cx.index })
    }

    /// The new disk has nothing of what the old one held.
    fn drop_holders(&mut self, node: &NodeId) {
        self.drop_orders_of(node);
        for job in self.jobs.values_mut() {
            if let Some(bundle) = &mut job.bundle {
                bundle.holders.retain(|holder| holder != node);
            }
            for shard in job.checkpoints.values_mut().flat_map(|checkpoint| &mut checkpoint.shards) {
                shard.holders.retain(|holder| holder.node != *node);
            }
        }
    }

    /// A worker that outlived its node's lease is there again: it holds its resources until the agent has stopped it.
    /// Only what the lost registration answered for: older ones were accounted for when it began.
    fn take_lost_back(&mut self, new: &Registration, lost: outlast_types::RegistrationId) {
        for adopted in &new.adopted {
            let Some(attempt) = self.attempt_mut(&adopted.attempt) else { continue };
            let Some(assignment) = attempt.assignments.get_mut(adopted.rank as usize) else { continue };
            let is_it = assignment.node == new.node
                && assignment.registration == lost
                && assignment.phase == AssignmentPhase::Lost;
            if is_it {
                assignment.phase = if assignment.exit.is_some() {
                    AssignmentPhase::Exited
                } else {
                    AssignmentPhase::Started
                };
                self.index.hold(&new.node, adopted.attempt, adopted.rank);
            }
        }
    }

    /// Ranks wait for an address that rank 0's agent did not come to tell. Had it ended well, nobody would tell it any more.
    fn waits_for_rendezvous(&self, id: &AttemptId) -> bool {
        self.attempt(id).is_some_and(|attempt| {
            let is_waiting = attempt.assignments.iter().any(|seat| seat.phase == AssignmentPhase::Assigned);
            attempt.phase == AttemptPhase::Starting && attempt.rendezvous.is_none() && is_waiting
        })
    }

    fn bind_workers(&mut self, cx: &mut Context<'_>, new: &Registration) {
        let mut missing = Vec::new();
        for (attempt, rank) in self.held_ranks(&new.node) {
            let is_this = |id: &AttemptId, of: u32| *id == attempt && of == rank;
            if let Some((_, _, exit)) = new.exited.iter().find(|(id, of, _)| is_this(id, *of)) {
                self.exited(cx, &new.node, &attempt, rank, exit);
                self.release(cx, &attempt, rank);
                if rank == 0 && self.waits_for_rendezvous(&attempt) {
                    let cause = Cause::NodeRestarted { node: new.node.clone() };
                    self.begin_stop(cx, &attempt, cause, false);
                }
            } else if !planted!(AdoptedIsGone)
                && new.adopted.iter().any(|adopted| is_this(&adopted.attempt, adopted.rank))
            {
                self.adopt(cx, new, &attempt, rank);
            } else {
                missing.push((attempt, rank));
            }
        }
        // After the recorded exits: how a worker ended says more than that it is gone.
        for (attempt, rank) in missing {
            let cause = Cause::NodeRestarted { node: new.node.clone() };
            self.machine_gone(cx, &attempt, rank, AssignmentPhase::Released, cause);
            cx.tell(Event::WorkerReleased { attempt, rank });
            self.refile(attempt.group.job);
        }
    }

    fn adopt(&mut self, cx: &mut Context<'_>, new: &Registration, attempt: &AttemptId, rank: u32) {
        let Some(assignment) =
            self.attempt_mut(attempt).and_then(|attempt| attempt.assignments.get_mut(rank as usize))
        else {
            return;
        };
        assignment.registration = new.registration;
        if assignment.phase == AssignmentPhase::Assigned {
            self.mark_started(cx, attempt, rank);
        }
    }
}

fn check_succession(old: &Node, new: &Registration) -> Result<(), Refusal> {
    if old.registration == new.registration {
        return Err(fenced(format!(
            "{} was declared lost under {}: register anew",
            old.id, old.registration
        )));
    }
    if old.past_registrations.contains(&new.registration) {
        return Err(fenced(format!("{} has registered anew since {}", old.id, new.registration)));
    }
    // One that was sent long ago, to a coordinator that stood still, say. It knows nothing of the workers since.
    if old.disk == new.disk && new.serial != 0 && new.serial < old.serial {
        return Err(fenced(format!(
            "{} has registered anew since: this is number {} of its data folder, the newest is {}. Was the folder put \
             back from a backup? Start the agent again, since each start counts, or give it a new data folder",
            old.id, new.serial, old.serial
        )));
    }
    let is_live = old.condition == NodeCondition::Registered;
    // The folder tells two agents apart: one that restarts has its own again. A machine whose folder was wiped waits
    // one lease: until then nobody can say whether the old agent still runs.
    if is_live && old.disk != new.disk {
        return Err(conflict(format!(
            "another agent, with another data folder, is registered as {}: choose another --name, or wait some seconds \
             until it is lost",
            old.id
        )));
    }
    Ok(())
}

/// The operators' and the policy's words about a node outlive its registrations; everything else is new.
fn node_record(cx: &Context<'_>, old: Option<&Node>, new: &Registration) -> Node {
    let mut past = old.map(|old| old.past_registrations.clone()).unwrap_or_default();
    past.extend(old.map(|old| old.registration));
    let surplus = past.len().saturating_sub(Limits::REGISTRATIONS_KEPT);
    past.drain(..surplus);
    Node {
        id: new.node.clone(),
        registration: new.registration,
        serial: new.serial,
        boot: new.boot.clone(),
        disk: new.disk.clone(),
        address: new.address.clone(),
        data_address: new.data_address.clone(),
        resources: new.resources.clone(),
        labels: new.labels.clone(),
        operator_labels: old.map(|old| old.operator_labels.clone()).unwrap_or_default(),
        features: new.features,
        feature_level: new.feature_level,
        condition: NodeCondition::Registered,
        registered_at: cx.at,
        registered_index: cx.index,
        past_registrations: past,
        watched_since: old.map_or(cx.at, |old| old.watched_since),
        lost_at: None,
        cordoned: old.is_some_and(|old| old.cordoned),
        draining: old.is_some_and(|old| old.draining),
        quarantined: old.and_then(|old| old.quarantined.clone()),
        observed: 0,
        assignments_changed_at: cx.index,
    }
}
