//! A machine with an agent, as the cluster knows it.

use std::collections::BTreeMap;

use outlast_types::{BootId, DiskId, NodeId, NodeResources, RegistrationId, WallTime};
use serde::{Deserialize, Serialize};

/// What the log says about a node's life. Ready and Suspect are the leader's momentary view of a `Registered` node and
/// are not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeCondition {
    Registered,
    Lost,
}

/// What the node can enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeFeatures {
    /// Every process of a worker can be killed at once (needed for `exclusive` jobs).
    pub cgroup_fence: bool,
    /// Memory limits are enforced.
    pub cgroup_memory: bool,
    /// It can reach an object store.
    #[serde(default, skip_serializing_if = "is_false")]
    pub object_store: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// The agent's current run. Anything that names another one is stale.
    pub registration: RegistrationId,
    /// See `Registration::serial`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub serial: u64,
    pub boot: BootId,
    pub disk: DiskId,
    /// `host:port` of the agent's peer service.
    pub address: String,
    /// `host:port` of the same service on the data network, where the node has one for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_address: Option<String>,
    pub resources: NodeResources,
    /// From the agent's configuration, overlaid by the operator's `node label`.
    pub labels: BTreeMap<String, String>,
    /// What the operator set; an empty value removes the agent's label.
    pub operator_labels: BTreeMap<String, String>,
    pub features: NodeFeatures,
    /// The newest format of commands that this agent understands.
    pub feature_level: u32,
    pub condition: NodeCondition,
    pub registered_at: WallTime,
    /// The log index of this registration.
    pub registered_index: u64,
    /// Earlier registrations, oldest first; bounded. None of them can come back.
    pub past_registrations: Vec<RegistrationId>,
    /// Failures before this time are no evidence against the node (an operator has looked at it, or it is new).
    pub watched_since: WallTime,
    pub lost_at: Option<WallTime>,
    pub cordoned: bool,
    pub draining: bool,
    /// Why policy keeps work away from the node, where it does.
    pub quarantined: Option<String>,
    /// The number of the newest observation of this registration that has been applied; older ones are repeats.
    pub observed: u64,
    /// The log index of the last change to this node's assignments. A lease grant carries it (design section 2).
    pub assignments_changed_at: u64,
}

impl Node {
    /// Where other nodes fetch bytes.
    pub fn peer_address(&self) -> &str {
        self.data_address.as_deref().unwrap_or(&self.address)
    }

    /// The value of a label, the operator's word first.
    pub fn label(&self, name: &str) -> Option<&str> {
        let value = self.operator_labels.get(name).or_else(|| self.labels.get(name))?;
        (!value.is_empty()).then_some(value.as_str())
    }

    /// All labels in force.
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.extend(self.operator_labels.clone());
        labels.retain(|_, value| !value.is_empty());
        labels
    }

    /// The failure domain: zone and rack where labelled; a node without such labels is a domain of its own.
    pub fn failure_domain(&self) -> String {
        match (self.label("zone"), self.label("rack")) {
            (None, None) => format!("node:{}", self.id),
            (zone, rack) => format!("zone:{}/rack:{}", zone.unwrap_or("-"), rack.unwrap_or("-")),
        }
    }

    /// Whether new work may be placed here, as far as the log says.
    pub fn accepts_work(&self) -> bool {
        self.condition == NodeCondition::Registered
            && !self.cordoned
            && !self.draining
            && self.quarantined.is_none()
    }
}
