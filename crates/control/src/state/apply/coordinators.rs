//! The cluster itself: founding it, leaders, members, the feature level.

use outlast_types::{ClusterId, CoordinatorId, Profile};

use super::{Context, Handled, conflict, invalid, not_found};
use crate::state::cluster::FIRST_FEATURE_LEVEL;
use crate::state::{ClusterConfig, ClusterState, CoordinatorRecord, Event, Incarnation, Refusal, Response};

/// The founder; every later id is a log index, and those are higher.
const FOUNDER: CoordinatorId = CoordinatorId(1);

impl ClusterState {
    pub(super) fn init_cluster(
        &mut self,
        cx: &mut Context<'_>,
        cluster_id: &ClusterId,
        profile: Profile,
        address: &str,
    ) -> Handled {
        if let Some(config) = &self.config {
            return Err(conflict(format!("the cluster is already initialised as {}", config.cluster_id)));
        }
        self.config =
            Some(ClusterConfig { cluster_id: cluster_id.clone(), profile, predecessors: Vec::new() });
        self.coordinators.insert(FOUNDER, record(cx, address, FIRST_FEATURE_LEVEL));
        cx.tell(Event::ClusterInitialized);
        cx.tell(Event::CoordinatorAdded { coordinator: FOUNDER });
        Ok(Response::Done)
    }

    pub(super) fn barrier(&mut self, cx: &mut Context<'_>, coordinator: CoordinatorId) -> Response {
        let incarnation = Incarnation { index: cx.index, coordinator };
        self.incarnation = Some(incarnation);
        cx.tell(Event::LeaderChanged { coordinator, incarnation: cx.index });
        Response::Barrier(incarnation)
    }

    pub(super) fn add_coordinator(
        &mut self,
        cx: &mut Context<'_>,
        address: &str,
        feature_level: u32,
    ) -> Handled {
        if feature_level < self.feature_level {
            return Err(too_old("coordinator", feature_level, self.feature_level));
        }
        let id = CoordinatorId(cx.index);
        if self.coordinators.contains_key(&id) {
            return Err(conflict(format!(
                "{id} was given to another coordinator in the same entry: try again"
            )));
        }
        let same_address = |record: &CoordinatorRecord| !record.removed && record.address == address;
        if let Some((other, _)) = self.coordinators.iter().find(|(_, record)| same_address(record)) {
            return Err(conflict(format!("{other} is already at {address}: remove it first")));
        }
        self.coordinators.insert(id, record(cx, address, feature_level));
        cx.tell(Event::CoordinatorAdded { coordinator: id });
        Ok(Response::CoordinatorAdded(id))
    }

    pub(super) fn remove_coordinator(&mut self, cx: &mut Context<'_>, coordinator: CoordinatorId) -> Handled {
        let others =
            self.coordinators.iter().filter(|(id, record)| **id != coordinator && !record.removed).count();
        let record = self
            .coordinators
            .get_mut(&coordinator)
            .ok_or_else(|| not_found(format!("coordinator {coordinator}")))?;
        if record.removed {
            return Ok(Response::Done);
        }
        if others == 0 {
            return Err(conflict(format!("{coordinator} is the last coordinator")));
        }
        record.removed = true;
        cx.tell(Event::CoordinatorRemoved { coordinator });
        Ok(Response::Done)
    }

    /// What its build knows: the level of a coordinator that was upgraded is else that of its first day.
    pub(super) fn announce_coordinator(&mut self, coordinator: CoordinatorId, level: u32) -> Handled {
        if level < self.feature_level {
            return Err(too_old("coordinator", level, self.feature_level));
        }
        let record = self
            .coordinators
            .get_mut(&coordinator)
            .ok_or_else(|| not_found(format!("coordinator {coordinator}")))?;
        if record.removed {
            return Err(conflict(format!("{coordinator} was removed")));
        }
        record.feature_level = level;
        Ok(Response::Done)
    }

    /// A new command is refused until every member knows it: this is how they come to say so together.
    pub(super) fn raise_feature_level(&mut self, cx: &mut Context<'_>, level: u32) -> Handled {
        if level < self.feature_level {
            return Err(conflict(format!(
                "the feature level is already {} and never goes back",
                self.feature_level
            )));
        }
        if let Some(old) = self.members().find(|member| member.level() < level) {
            return Err(conflict(old.too_old()));
        }
        if level > self.feature_level {
            self.feature_level = level;
            cx.tell(Event::FeatureLevelRaised { level });
        }
        Ok(Response::Done)
    }
}

pub(super) fn record(cx: &Context<'_>, address: &str, feature_level: u32) -> CoordinatorRecord {
    CoordinatorRecord { address: address.to_owned(), feature_level, added_at: cx.at, removed: false }
}

pub(super) fn too_old(who: &str, has: u32, needed: u32) -> Refusal {
    invalid(format!(
        "this {who} knows feature level {has}, the cluster is at {needed}: upgrade the {who} first"
    ))
}
