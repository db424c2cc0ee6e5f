//! `OpenGeneration`: a cluster that goes on from another's data, under a new id. Nothing of the lost time comes back: its
//! coordinators, its leader's orders and its attempts are over, and numbers that it may have given away are left out.
//!
//! Nodes stay as they are. Their agents come and register anew, or are lost when the new leader's first full lease is
//! over, so that whatever lease they still have ends first (invariant 23).

use outlast_types::{AttemptId, Cause, ClusterId, CoordinatorId};

use super::coordinators::{record, too_old};
use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict};
use crate::state::{ClusterState, Event, Group, Limits, Response};

impl ClusterState {
    pub(super) fn open_generation(
        &mut self,
        cx: &mut Context<'_>,
        cluster_id: &ClusterId,
        address: &str,
        feature_level: u32,
        reason: &str,
    ) -> Handled {
        if feature_level < self.feature_level {
            return Err(too_old("coordinator", feature_level, self.feature_level));
        }
        let id = CoordinatorId(cx.index);
        if self.coordinators.contains_key(&id) {
            return Err(conflict(format!("{id} was given to a coordinator already")));
        }
        let Some(config) = self.config.as_mut() else {
            return Err(conflict("there is no cluster to go on from"));
        };
        if config.cluster_id == *cluster_id || config.predecessors.contains(cluster_id) {
            return Err(conflict(format!("{cluster_id} is the name of a cluster that is over")));
        }
        config.predecessors.push(std::mem::replace(&mut config.cluster_id, cluster_id.clone()));
        let surplus = config.predecessors.len().saturating_sub(Limits::PREDECESSORS_KEPT);
        config.predecessors.drain(..surplus);
        self.generation = self.generation.saturating_add(1);
        // Whatever a leader of the lost time still wants is stale, and nothing is planned before a new barrier.
        self.incarnation = None;
        let (generation, reason) = (self.generation, bounded(reason, REASON_BYTES_MAX));
        cx.tell(Event::GenerationOpened { generation, cluster_id: cluster_id.clone(), reason });
        self.replace_coordinators(cx, id, address, feature_level);
        self.skip_numbers();
        self.stop_everything(cx);
        Ok(Response::CoordinatorAdded(id))
    }

    fn replace_coordinators(
        &mut self,
        cx: &mut Context<'_>,
        id: CoordinatorId,
        address: &str,
        feature_level: u32,
    ) {
        for (coordinator, record) in self.coordinators.iter_mut().filter(|(_, record)| !record.removed) {
            record.removed = true;
            cx.tell(Event::CoordinatorRemoved { coordinator: *coordinator });
        }
        self.coordinators.insert(id, record(cx, address, feature_level));
        cx.tell(Event::CoordinatorAdded { coordinator: id });
    }

    /// Invariant 37, over the gap: agents may have bytes of, and verdicts about, checkpoints that this log never heard of.
    fn skip_numbers(&mut self) {
        self.next_job = self.next_job.saturating_add(Limits::NUMBERS_SKIPPED);
        self.generation_first_job = self.next_job;
        for job in self.jobs.values_mut() {
            job.next_checkpoint = job.next_checkpoint.saturating_add(Limits::NUMBERS_SKIPPED);
        }
    }

    fn stop_everything(&mut self, cx: &mut Context<'_>) {
        let groups = self.jobs.values().flat_map(|job| &job.groups);
        let current: Vec<AttemptId> = groups.filter_map(Group::current).map(|attempt| attempt.id).collect();
        for attempt in current {
            self.begin_stop(cx, &attempt, Cause::ClusterRecovered, false);
        }
    }
}
