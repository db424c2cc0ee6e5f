//! What operators and policy want of a node: cordon, drain, labels, quarantine.

use std::collections::BTreeMap;

use outlast_types::{NodeId, RegistrationId};

use super::{Context, Handled, REASON_BYTES_MAX, bounded, conflict, fenced, invalid, not_found};
use crate::state::{ClusterState, Event, Incarnation, Node, NodeCondition, Refusal, Response};

/// Labels of one node, and the length of a label's name or value: a node record stays small.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

impl ClusterState {
    pub(super) fn node_mut(&mut self, node: &NodeId) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(node).ok_or_else(|| not_found(format!("node {node}")))
    }

    /// The node, if this registration is its current one and it is not Lost.
    pub(super) fn answering(&self, node: &NodeId, registration: RegistrationId) -> Result<&Node, Refusal> {
        let record = self.nodes.get(node).ok_or_else(|| not_found(format!("node {node}")))?;
        if record.registration != registration {
            return Err(fenced(format!("{registration} is not the registration of {node}: register again")));
        }
        if record.condition == NodeCondition::Lost {
            return Err(fenced(format!("{node} was declared lost under {registration}: register anew")));
        }
        Ok(record)
    }

    pub(super) fn cordon_node(&mut self, cx: &mut Context<'_>, node: &NodeId) -> Handled {
        self.node_mut(node)?.cordoned = true;
        Ok(changed(cx, node, "cordoned"))
    }

    /// The operator's word: the node may have work again, whatever drained or quarantined it. Failures before this
    /// moment are no evidence any more.
    pub(super) fn uncordon_node(&mut self, cx: &mut Context<'_>, node: &NodeId) -> Handled {
        let at = cx.at;
        let record = self.node_mut(node)?;
        record.cordoned = false;
        record.draining = false;
        record.quarantined = None;
        record.watched_since = at;
        Ok(changed(cx, node, "uncordoned"))
    }

    pub(super) fn drain_node(&mut self, cx: &mut Context<'_>, node: &NodeId) -> Handled {
        let record = self.node_mut(node)?;
        record.cordoned = true;
        record.draining = true;
        Ok(changed(cx, node, "draining"))
    }

    pub(super) fn quarantine_node(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        reason: &str,
        incarnation: Option<Incarnation>,
    ) -> Handled {
        self.check_planned(incarnation)?;
        // The planner looks at this, too, but may have planned another one that was on its way.
        let is_other = |other: &Node| other.id != *node && other.accepts_work();
        if incarnation.is_some() && !self.nodes.values().any(is_other) {
            return Err(conflict(format!("{node} is the only node that takes work: better than none")));
        }
        self.node_mut(node)?.quarantined = Some(bounded(reason, REASON_BYTES_MAX));
        Ok(changed(cx, node, &format!("quarantined: {}", bounded(reason, REASON_BYTES_MAX))))
    }

    pub(super) fn label_node(
        &mut self,
        cx: &mut Context<'_>,
        node: &NodeId,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Handled {
        let too_long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if set.iter().any(|(name, value)| name.is_empty() || too_long(name) || too_long(value)) {
            return Err(invalid(format!("a label's name and value have at most {LABEL_BYTES_MAX} bytes")));
        }
        let record = self.node_mut(node)?;
        let mut labels = record.operator_labels.clone();
        labels.retain(|name, _| !remove.contains(name));
        labels.extend(set.clone());
        if labels.len() > LABELS_MAX {
            return Err(invalid(format!("a node has at most {LABELS_MAX} labels")));
        }
        record.operator_labels = labels;
        Ok(changed(cx, node, "labelled"))
    }
}

fn changed(cx: &mut Context<'_>, node: &NodeId, what: &str) -> Response {
    cx.tell(Event::NodeChanged { node: node.clone(), what: what.to_owned() });
    Response::Done
}
