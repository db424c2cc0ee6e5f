//! Feature levels: what every member knows, and so what the cluster may be raised to.

use outlast_types::CoordinatorId;

use super::{ClusterState, Node, NodeCondition, Refusal};

/// Members that a refusal names.
const NAMED_MAX: usize = 5;

/// Somebody whose build decides what may be in the log.
pub(super) enum Member<'a> {
    Coordinator(CoordinatorId, u32),
    Node(&'a Node),
}

impl Member<'_> {
    pub(super) fn level(&self) -> u32 {
        match self {
            Member::Coordinator(_, level) => *level,
            Member::Node(node) => node.feature_level,
        }
    }

    /// Why a higher level has to wait.
    pub(super) fn too_old(&self) -> String {
        let level = self.level();
        match self {
            Member::Coordinator(id, _) => format!("{id} knows feature level {level} only: upgrade it first"),
            Member::Node(node) => {
                format!("node {} knows feature level {level} only: upgrade its agent first", node.id)
            }
        }
    }
}

impl ClusterState {
    /// Coordinators that are not removed, and nodes that are not Lost: a lost one that knows too little is refused when it
    /// registers again.
    pub(super) fn members(&self) -> impl Iterator<Item = Member<'_>> {
        let coordinators = self.coordinators.iter().filter(|(_, record)| !record.removed);
        let nodes = self.nodes.values().filter(|node| node.condition == NodeCondition::Registered);
        coordinators
            .map(|(id, record)| Member::Coordinator(*id, record.feature_level))
            .chain(nodes.map(Member::Node))
    }

    /// The highest level that every member knows, where it is above the cluster's; `None` where nobody knows more than
    /// the cluster has.
    ///
    /// # Errors
    /// Somebody knows more, but not everybody: names who has to be upgraded first.
    pub fn next_feature_level(&self) -> Result<Option<u32>, Refusal> {
        let common = self.members().map(|member| member.level()).min().unwrap_or(0);
        if common > self.feature_level {
            return Ok(Some(common));
        }
        let highest = self.members().map(|member| member.level()).max().unwrap_or(0);
        if highest <= self.feature_level {
            return Ok(None);
        }
        let behind = || self.members().filter(|member| member.level() <= self.feature_level);
        let named: Vec<String> = behind().take(NAMED_MAX).map(|member| member.too_old()).collect();
        let others = match behind().count() - named.len() {
            0 => String::new(),
            others => format!("; and {others} others"),
        };
        let reason = format!(
            "not every member knows more than feature level {}: {}{others}",
            self.feature_level,
            named.join("; ")
        );
        Err(Refusal::Conflict { reason })
    }
}
