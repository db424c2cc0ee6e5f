//! `RequestCheckpoint`: asks an attempt's workers to save now, before a wanted move.

use outlast_types::{AttemptId, CheckpointSeq};

use super::{Context, Handled, conflict};
use crate::state::{AttemptPhase, ClusterState, Event, Incarnation, Response};

impl ClusterState {
    pub(super) fn request_checkpoint(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let attempt = self.current_attempt(&id)?;
        if attempt.phase == AttemptPhase::Stopping {
            return Err(conflict(format!("{id} is being stopped")));
        }
        if attempt.checkpoint_requested {
            return Ok(Response::Done);
        }
        let next = self.job_mut(id.group.job)?.next_checkpoint;
        if let Some(attempt) = self.attempt_mut(&id) {
            attempt.checkpoint_requested = true;
            attempt.checkpoint_requested_from = Some(CheckpointSeq(next));
        }
        self.touch_nodes_of(cx.index, &id);
        cx.tell(Event::CheckpointRequested { attempt: id });
        Ok(Response::Done)
    }
}
