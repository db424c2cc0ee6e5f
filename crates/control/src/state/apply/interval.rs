//! `SetInterval`: how often a group saves, where its job leaves that to us.

use outlast_types::GroupId;

use super::{Context, Handled, not_found};
use crate::state::{ChosenInterval, ClusterState, Event, Incarnation, Response};

impl ClusterState {
    pub(super) fn set_interval(
        &mut self,
        cx: &mut Context<'_>,
        group: GroupId,
        interval: ChosenInterval,
        incarnation: Incarnation,
    ) -> Handled {
        self.check_incarnation(incarnation)?;
        let record = self.group_mut(&group).ok_or_else(|| not_found(format!("group {group}")))?;
        record.interval = Some(interval);
        let current = self.group(&group).and_then(crate::state::Group::current).map(|attempt| attempt.id);
        if let Some(attempt) = current {
            self.touch_nodes_of(cx.index, &attempt);
        }
        cx.tell(Event::IntervalChosen { group, every_ms: interval.every_ms });
        Ok(Response::Done)
    }
}
