//! `NodeLost`: a lost node's work is over because the log says so.

use outlast_types::{AttemptId, Cause, NodeId, RegistrationId};

use super::{Context, Handled, fenced, not_found};
use crate::state::{AssignmentPhase, ClusterState, Event, Incarnation, NodeCondition, Response};

impl ClusterState {
    pub(super) fn node_lost(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        registration: RegistrationId,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let record = self.nodes.get_mut(node).ok_or_else(|| not_found(format!("node {node}")))?;
        if record.registration != registration {
            return Err(fenced(format!("{node} has registered anew since {registration}")));
        }
        if record.condition == NodeCondition::Lost {
            return Ok(Response::Done);
        }
        record.condition = NodeCondition::Lost;
        record.lost_at = Some(cx.at);
        record.assignments_changed_at = record.assignments_changed_at.max(cx.index);
        cx.tell(Event::NodeLost { node: node.clone() });
        self.drop_orders_of(node);
        for (attempt, rank) in self.held_ranks(node) {
            let cause = Cause::NodeLost { node: node.clone() };
            self.machine_gone(cx, &attempt, rank, AssignmentPhase::Lost, cause);
            self.refile(attempt.group.job);
        }
        Ok(Response::Done)
    }

    pub(super) fn held_ranks(&self, node: &NodeId) -> Vec<(AttemptId, u32)> {
        self.index.held.get(node).into_iter().flatten().copied().collect()
    }

    /// The machine under a rank went away: the rank's hold ends in `phase`, and its attempt stops, unless the rank had
    /// ended well and needs its node no more.
    pub(super) fn machine_gone(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &AttemptId,
        rank: u32,
        phase: AssignmentPhase,
        cause: Cause,
    ) {
        let seat = self.attempt(attempt).and_then(|attempt| attempt.assignment(rank));
        let had_exited = seat.is_some_and(|seat| seat.exit.is_some());
        match (self.let_go(attempt, rank, phase), had_exited) {
            (true, _) => {}
            (false, true) => self.begin_stop(cx, attempt, cause, false),
            (false, false) => self.begin_stop_by_machine(cx, attempt, cause),
        }
    }

    /// Ends the hold of one assignment; says whether its worker had exited with success.
    pub(super) fn let_go(&mut self, attempt: &AttemptId, rank: u32, phase: AssignmentPhase) -> bool {
        let Some(assignment) =
            self.attempt_mut(attempt).and_then(|attempt| attempt.assignments.get_mut(rank as usize))
        else {
            return false;
        };
        assignment.phase = phase;
        let finished = assignment.exit.as_ref().is_some_and(|exit| exit.status.is_success());
        let node = assignment.node.clone();
        self.index.let_go(&node, *attempt, rank);
        finished
    }

    /// What the job holds has changed: it may need no attention any more.
    pub(super) fn refile(&mut self, job: outlast_types::JobId) {
        if let Some(job) = self.jobs.get(&job) {
            self.index.file(job);
        }
    }
}
